"""Intrinsic plasticity: each unit's bias moves until the unit is as active as it should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad import _check
from steadygrad.plasticity._units import Activity, hidden_links


class IntrinsicPlasticity:
    """Move the bias of each hidden unit until its mean activation is at a target.

        a_i <- (1 - m) a_i + m mean(h_i)          h_i: activation of unit i over the batch
        b_i <- b_i + rate (target - a_i)

    When to use it: units that went silent or saturated in a plain net; a ReLU unit that is always 0 gets no gradient,
    and this raises its bias until it fires again. Beside an ordinary optimizer.

    Limits: it changes what the net computes, against the loss if need be; keep the rate small. Layers behind which a
    norm or a skip stands are left alone (``left_out``), as are those without a bias.

    Values in use: rate 0.01, target 0 for tanh, 0.1 to 0.5 for ReLU (ours).

    Cost: one mean a layer and forward pass.

    Args:
        model: hooked; changed by ``step`` only.
        example_input: as for ``sg.init.follow``.
        target: wanted mean activation, finite.
        rate: at least 0; 0 only measures.
        momentum: m, weight of a new batch in the average, above 0, at most 1.

    ``step`` is called after each step of the optimizer. A unit whose activation is not finite is left as it is, and the
    average does not learn from that batch.

    Raises ValueError if the model has no such layer; ``step`` raises RuntimeError in evaluation mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = nn.init.constant_(model[0].bias, -9.0)  # dead
        >>> plasticity = IntrinsicPlasticity(model, torch.zeros(1, 4), target=0.2, rate=1.0)
        >>> for _ in range(80):
        ...     _ = model(torch.randn(64, 4))
        ...     plasticity.step()
        >>> bool((model[0](torch.randn(64, 4)).relu().mean(0) > 0).all())
        True

    Source: after Triesch (2005), https://doi.org/10.1007/11550822_11, with the mean alone as the target and the bias
    alone to reach it.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        *,
        target: float,
        rate: float = 0.01,
        momentum: float = 0.1,
    ) -> None:
        self.target = _check.number("target", target)
        self.rate = _check.number("rate", rate, 0.0)
        self.momentum = _check.fraction("momentum", momentum, zero=False)
        self.model = model
        found, self.left_out = hidden_links(model, example_input)
        self.left_out |= {link.name: "no bias" for link in found if link.layer.bias is None}
        self._links = [link for link in found if link.layer.bias is not None]
        self._activity = Activity(self._links)
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the biases by what the forward passes since the last call showed."""
        _check.training_mode(self.model, "step")
        for link in self._links:
            if link.name not in self._activity.mean:
                continue
            seen = self._activity.mean[link.name]
            before = self.averages.get(link.name, seen)
            learned = torch.where(seen.isfinite(), torch.lerp(before, seen, self.momentum), before)
            self.averages[link.name] = learned
            assert link.layer.bias is not None
            moved = self.rate * (self.target - learned)
            link.layer.bias += torch.where(learned.isfinite() & seen.isfinite(), moved, 0.0).to(
                link.layer.bias
            )
        self._activity.clear()

    def close(self) -> None:
        """Take the hooks off."""
        self._activity.remove()

    def state_dict(self) -> dict[str, Any]:
        """The averages by layer; the settings are not in it."""
        return {"averages": {name: value.clone() for name, value in self.averages.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        _check.state("IntrinsicPlasticity", state, {"averages": None})
        sizes = {link.name: link.units for link in self._links}
        for name, value in state["averages"].items():
            if sizes.get(name) != value.numel():
                raise ValueError(
                    f"the state has {value.numel()} units of {name!r}, the model {sizes.get(name)}"
                )
        self.averages = {name: value.clone() for name, value in state["averages"].items()}
        self._activity.clear()
