"""Single units of a layer: how active each is, and how to give one a new start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.plasticity._chain import Known, Link, links


def hidden_links(model: nn.Module, example_input: Any) -> tuple[list[Link], dict[str, str]]:
    """The pairs of `links`, or those that are `Known`; ValueError if there is none."""
    if isinstance(example_input, Known):
        return list(example_input.links), {}
    found, left_out = links(model, example_input)
    if not found:
        raise ValueError(
            "there is no hidden layer whose units one other layer reads: "
            + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    return found, left_out


class Activity:
    """Hooks that note, at each forward pass in training mode, the mean activation of each unit and its mean size."""

    def __init__(self, found: Sequence[Link]) -> None:
        self.mean: dict[str, Tensor] = {}
        self.size: dict[str, Tensor] = {}
        self._handles = [link.reader.register_forward_pre_hook(self._hook(link)) for link in found]

    def _hook(self, link: Link) -> Any:
        def note(reader: nn.Module, args: tuple[Any, ...]) -> None:
            if reader.training and args[0].numel():
                values = by_unit(link, args[0].detach())
                self.mean[link.name], self.size[link.name] = values.mean(1), values.abs().mean(1)

        return note

    def clear(self) -> None:
        self.mean.clear()
        self.size.clear()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def by_unit(link: Link, values: Tensor) -> Tensor:
    """(units, everything else) of what the reader is given, in float32 at least."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if isinstance(link.reader, nn.Linear):
        values = values.reshape(-1, link.units, link.copies)
    else:
        values = values.unflatten(-len(link.reader.kernel_size) - 1, (link.units, link.copies))
        values = values.movedim(-len(link.reader.kernel_size) - 2, 1).reshape(
            -1, link.units, *values.shape[-1:]
        )
    return values.movedim(1, 0).flatten(1)


@torch.no_grad()
def restart_units_(
    link: Link,
    units: Tensor,
    optimizer: Optimizer,
    generator: torch.Generator,
    former_mean: Tensor | None = None,
) -> None:
    """Fresh incoming weights, bias 0, outgoing weights 0, and no memory of the optimizer's for these units.

    With ``former_mean`` what the units gave on average goes into the reader's bias.
    """
    weight, fan_in = link.layer.weight, link.layer.weight[0].numel()
    bound = 1 / math.sqrt(fan_in)  # torch's own, of linear layers and convolutions
    fresh = torch.empty(len(units), *weight.shape[1:]).uniform_(-bound, bound, generator=generator)
    out = link.reader.weight.unflatten(1, (link.units, link.copies))
    if former_mean is not None and link.reader.bias is not None:
        given = out[:, units].flatten(3).sum((2, 3)) if out.dim() > 3 else out[:, units].sum(2)
        link.reader.bias += given @ former_mean[units].to(given)
    weight[units] = fresh.to(weight)
    if link.layer.bias is not None:
        link.layer.bias[units] = 0
    out[:, units] = 0
    for parameter in (weight, link.layer.bias):
        for value in _moments(optimizer, parameter) if parameter is not None else ():
            value[units] = 0
    for value in _moments(optimizer, link.reader.weight):
        value.unflatten(1, (link.units, link.copies))[:, units] = 0


def _moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
