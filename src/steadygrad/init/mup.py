"""mu-P: initial variances and learning rates with which one learning rate fits every width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from steadygrad.init.follow import Layer


@dataclass(frozen=True, slots=True)
class MuP:
    """What mu-P asks of one parameter, relative to the same parameter of the base model."""

    std: float  # factor of the standard deviation that the usual initialisation (variance 1 / fan_in) gives
    adam: float  # factor of the learning rate of Adam and its kin
    sgd: float  # factor of the learning rate of SGD, with or without momentum


def mup_multipliers(model: nn.Module, base: nn.Module, layers: Iterable[Layer]) -> dict[str, MuP]:
    """Factors of standard deviation and learning rate for every parameter, from the widths of a model and its base.

        r_in, r_out = fan_in / base fan_in, fan_out / base fan_out
        std  = sqrt(1 / r_in) for an output weight (r_in > 1, r_out = 1), else 1
        adam = 1 / r_in           sgd = r_out / r_in           (vectors: r_in = 1)

    so hidden weights get 1 / r_in from Adam, output weights 1 / r_in^2 in variance, input weights and biases
    r_out from SGD. Attention must divide its logits by d instead of sqrt(d); that is the model's own code.

    Args:
        model: the wide model.
        base: the same architecture at the width at which the learning rate was tuned; may be on the meta
            device.
        layers: ``follow(model, example_input).layers``: which dimensions of a weight are inputs.

    Raises ValueError if the two models differ in more than sizes.

    When to use it: to tune on a small model and train a large one.

    Values in use: the base width is that of the tuning: 256 for the 6.7B GPT-3 (Yang).

    Cost: none.

    Example:
        >>> import torch
        >>> from steadygrad.init.follow import follow
        >>> def net(n): return nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 2))
        >>> wide = net(64)
        >>> factors = mup_multipliers(wide, net(16), follow(wide, torch.zeros(1, 4)).layers)
        >>> [(factors[f"{i}.weight"].adam, factors[f"{i}.weight"].std) for i in (0, 2, 4)]
        [(1.0, 1.0), (0.25, 1.0), (0.25, 0.5)]

    Source: Yang et al. (2022), table 3, https://arxiv.org/abs/2203.03466
    """
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    small = {n: tuple(p.shape) for n, p in base.named_parameters()}
    if shapes.keys() != small.keys() or any(len(shapes[n]) != len(small[n]) for n in shapes):
        odd = sorted(shapes.keys() ^ small.keys()) or [n for n in shapes if len(shapes[n]) != len(small[n])]
        raise ValueError(
            f"base must have the parameters of model at other widths; they differ in {', '.join(odd[:5])}"
        )
    inputs = {p: layer.in_dims for layer in layers for p in layer.params}
    factors = {}
    for name, shape in shapes.items():
        ratios = [a / b if b else 1.0 for a, b in zip(shape, small[name], strict=True)]
        into = inputs.get(name, ())
        r_in = math.prod(ratios[d] for d in into)
        r_out = math.prod(r for d, r in enumerate(ratios) if d not in into)
        output = r_in != 1 and r_out == 1
        factors[name] = MuP(1 / math.sqrt(r_in) if output else 1.0, 1 / r_in, r_out / r_in)
    return factors


def scaled_groups(
    model: nn.Module, lr: float, factors: Mapping[str, float], **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one per learning rate: ``lr`` times each parameter's factor.

    Args:
        model: parameters with ``requires_grad`` only; each once.
        lr: base learning rate, > 0.
        factors: by parameter name; 1 where it is missing.
        options: further entries of every group, e.g. ``weight_decay``.

    Example:
        >>> groups = scaled_groups(nn.Linear(2, 2), 0.1, {"weight": 0.5})
        >>> [(g["lr"], len(g["params"])) for g in groups]
        [(0.05, 1), (0.1, 1)]
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    groups: dict[float, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factors.get(name, 1.0), []).append(parameter)
    return [{"params": params, "lr": lr * factor, **options} for factor, params in groups.items()]
