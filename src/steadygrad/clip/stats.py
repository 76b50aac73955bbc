"""What every clipping rule returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steadygrad.clip._memory import Memory


class ClipStats(NamedTuple):
    """What a rule saw and did, as 0-D tensors on the device of the gradients: nothing is copied to the host.

    A rule that sees a nan or inf anywhere, or a norm too large for float32, changes **nothing**: every number
    stays bit for bit as it is (a nan stays a nan), ``finite`` is False, ``norm`` is the non-finite value and
    ``scale`` is nan. Whoever takes the step must look::

        stats = rule(grads)
        if stats.finite:  # one read by the host
            optimizer.step()
    """

    norm: Tensor  # before the rule: the joint norm; max |g| for rules that look at single entries
    scale: Tensor  # smallest factor applied to anything: 1 if nothing was changed, nan if not finite
    limit: Tensor  # the bound in force, in the rule's own unit; inf where there is none (yet)
    clipped: Tensor  # share of the gradient tensors that were changed, 0 to 1
    finite: Tensor  # bool


class Decision(NamedTuple):
    """What a rule with one joint factor makes of a norm; nothing is changed and nothing learned by it."""

    norm: Tensor  # 0-D: the joint norm as the rule took it
    scale: Tensor  # 0-D: factor for every gradient, at least 0; 1 if the norm is not finite
    limit: Tensor  # 0-D: the bound in force
    memory: Memory  # of the rule once the step is taken; the old one if the norm is not finite


def clip_stats(norm: Tensor, scales: Tensor, limit: float | Tensor) -> ClipStats:
    """Sum up a rule that applied ``scales`` (0-D for one factor, else one for each tensor)."""
    finite = norm.isfinite()
    if not isinstance(limit, Tensor):
        limit = torch.full_like(norm, limit)
    changed = (scales != 1).float()
    if scales.ndim:
        scales, changed = scales.amin(), changed.mean()
    return ClipStats(
        norm=norm,
        scale=torch.where(finite, scales, float("nan")),
        limit=limit,
        clipped=torch.where(finite, changed, 0.0),
        finite=finite,
    )


def nothing_to_clip(limit: float = float("inf")) -> ClipStats:
    """The record of an empty list: norm 0, nothing changed."""
    return clip_stats(torch.tensor(0.0), torch.tensor(1.0), limit)


def worst(stats: Sequence[ClipStats]) -> ClipStats:
    """One record for rules that ran one after the other on the same gradients.

    ``norm`` and ``limit`` are those of the first rule, ``scale`` is the product, ``clipped`` the largest.
    """
    first = stats[0]
    finite, scale, clipped = first.finite, first.scale, first.clipped
    for s in stats[1:]:
        finite = finite & s.finite
        scale = scale * s.scale
        clipped = torch.maximum(clipped, s.clipped)
    return ClipStats(first.norm, scale, first.limit, clipped, finite)
