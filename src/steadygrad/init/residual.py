"""Residual branches that start small: Fixup, SkipInit, ReZero, and GPT-2's scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad.init.orthogonal import scratch


def fixup_branch_(
    weights: Sequence[Tensor],
    num_branches: int,
    fan_ins: Sequence[int] | None = None,
    gain: float = math.sqrt(2.0),
    generator: torch.Generator | None = None,
) -> None:
    """Initialise the weights of one residual branch for a net without normalisation. In place.

        W_i ~ N(0, gain^2 / fan_in) * L^(-1 / (2 m - 2))  for i < m,      W_m = 0

    so that one SGD step changes the output of the net by an amount that does not depend on its depth. The
    paper's other rules: the classification layer starts at 0, a learned scalar multiplies each branch (starts
    at 1) and a learned scalar bias precedes each weight and activation (starts at 0).

    Args:
        weights: the weights of the branch from input to output, one or more; two dimensions or more each.
        num_branches: L, residual branches in the whole net, >= 1.
        fan_ins: fan_in of each; None takes all dimensions but the first, right for Linear and Conv.
        gain: of the activation inside the branch; sqrt(2) for ReLU.
        generator: source of the random numbers; None uses the global one.

    With one weight (m = 1) there is only the zero. What was in the weights before plays no part.

    When to use it: very deep residual nets without normalisation.

    Values in use: gain sqrt(2) before ReLU (Zhang: up to 10,000 layers at the usual learning rate).

    Cost: none.

    Example:
        >>> a, b = torch.empty(64, 64), torch.empty(64, 64)
        >>> fixup_branch_([a, b], num_branches=16)
        >>> round(a.std().item() * 8 / math.sqrt(2) * 4, 1), b.abs().sum().item()
        (1.0, 0.0)

    Source: Zhang, Dauphin & Ma (2019), the box "Fixup initialization", rules 1 to 3,
    https://arxiv.org/abs/1901.09321
    """
    if not weights:
        raise ValueError("weights is empty: a branch has at least one weight")
    if num_branches < 1:
        raise ValueError(f"num_branches must be at least 1, got {num_branches}")
    if any(w.dim() < 2 for w in weights):
        raise ValueError(
            f"weights must have two dimensions or more, got shapes {[tuple(w.shape) for w in weights]}"
        )
    fans = [math.prod(w.shape[1:]) for w in weights] if fan_ins is None else list(fan_ins)
    if len(fans) != len(weights) or any(f < 1 for f in fans):
        raise ValueError(
            f"fan_ins must give one positive number per weight, got {fans} for {len(weights)} weights"
        )
    scale = fixup_scale(num_branches, len(weights))
    with torch.no_grad():
        for weight, fan in zip(weights[:-1], fans, strict=False):
            weight.copy_(
                scratch(weight, generator).normal_(0.0, gain / math.sqrt(fan) * scale, generator=generator)
            )
        weights[-1].zero_()


def fixup_scale(num_branches: int, depth: int) -> float:
    """``L^(-1 / (2 m - 2))`` for L branches of m weights; 1 for m = 1, whose only weight is 0.

    Source: Zhang, Dauphin & Ma (2019), the box "Fixup initialization", rule 2,
    https://arxiv.org/abs/1901.09321
    """
    return num_branches ** (-1 / (2 * depth - 2)) if depth > 1 else 1.0


def branch_scale(num_branches: int) -> float:
    """``1 / sqrt(N)``: the scale of each of N branches that leaves their sum at the variance of one.

    GPT-2 multiplies the weights that end a branch by it. Without normalisation the stream then grows by at
    most ``(1 + 1/N)^N < e`` in variance instead of ``2^N``.

    Source: Radford et al. (2019), section 2.3 (GPT-2); Hayou et al. (2021), https://arxiv.org/abs/2010.12859
    """
    if num_branches < 1:
        raise ValueError(f"num_branches must be at least 1, got {num_branches}")
    return 1 / math.sqrt(num_branches)
