"""The second moment that an adaptive optimizer divides by: is it stale, or frozen?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steadygrad.probe.host import near
from steadygrad.records import NAN

SAMPLE = 16384  # elements in one step for the means of g^2 / v, which the tensors of that step share
LEAST = (
    2048  # elements for the mean of one: its root is within 1.6 % (one sigma) of the slice's if g is Gaussian
)
FLOOR = 1e-38  # smallest normal float32: below it a second moment has lost its digits


class Moment(NamedTuple):
    """An average of squared gradients in the state of an optimizer."""

    average: Tensor
    decay: float
    step: Tensor | float


def second_moment(group: dict[str, Any], state: dict[str, Any]) -> Moment | None:
    """The second moment of a parameter, from its group and its state; None if the optimizer keeps none."""
    if isinstance(average := state.get("exp_avg_sq"), Tensor):
        betas = group.get("betas")
        decay = betas[1] if isinstance(betas, (list, tuple)) and len(betas) > 1 else None
    elif isinstance(average := state.get("square_avg"), Tensor):
        decay = group.get("alpha", group.get("rho"))  # RMSprop, Adadelta
    else:
        return None
    step = state.get("step", group.get("step"))
    if decay is None or not isinstance(step, (Tensor, int, float)):
        return None
    return Moment(average, float(decay), step)


def normalised_gradients(
    grads: Sequence[Tensor], averages: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Sequence[Tensor], Sequence[Tensor | int]]:
    """``g / sqrt(v)`` of each pair, as flat tensors of ``dtype``, and the number of v above 0 of each.

    The pairs are on one device. They are laid end to end first: a few calls for all.
    """
    sizes = [v.numel() for v in averages]
    v = _flat(averages).to(dtype)
    root = torch.clamp_min(v, FLOOR).sqrt_()
    ratios = torch.div(_flat(grads).to(dtype), root, out=root).split(sizes)
    # Counting is dearer than a minimum, and near the host it costs nothing to wait for that.
    if near(v) and float(torch.aminmax(v).min) > 0:
        return ratios, sizes
    return ratios, [torch.count_nonzero(part) for part in v.split(sizes)]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


def adam_rms(norm: float, count: float, decay: float, step: float) -> float:
    """sqrt(mean(g^2 / v_hat)) from the norm of g / sqrt(v), with the bias correction of Adam.

    Source: Kingma & Ba (2015), Algorithm 1, https://arxiv.org/abs/1412.6980; the signal is RMS_t of
    Wortsman et al. (2023), section 3.4, https://arxiv.org/abs/2304.13013
    """
    if not count or not step > 0:
        return NAN
    return norm * math.sqrt((1 - decay**step) / count)
