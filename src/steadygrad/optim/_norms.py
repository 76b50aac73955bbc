"""Norms of whole layers and factors made of them, as tensors on the device: the host never reads one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad.clip._tensors import _local, norms_of


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor, stacked; at least float32."""
    return norms_of(dict(enumerate(tensors)))


def weight_norms(params: Sequence[Tensor], min_rms: float) -> Tensor:
    """The norm of each tensor of weights, counted as that of weights with RMS ``min_rms`` where it is less.

        max(||w||, min_rms sqrt(n))

    A tensor of zeros would otherwise have a relative step of 0, and never move.
    """
    floors = [min_rms * math.sqrt(p.numel()) for p in params]
    return torch.stack(torch._foreach_clamp_min(list(norms(params).unbind()), floors))


def ratio(weights: Tensor, updates: Tensor) -> Tensor:
    """``weights / updates``, 1 where the update is 0: there is nothing to scale."""
    return torch.where(updates == 0, 1.0, weights / updates)


def scale_(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply every tensor in place by one number, or by its own entry of a stack of them."""
    here = [_local(t) for t in tensors]  # of a sharded tensor (DTensor) the part that lies here
    if not isinstance(factor, Tensor):
        torch._foreach_mul_(here, float(factor))
    elif factor.dim() == 0:
        torch._foreach_mul_(here, on(factor, here[0]))
    else:
        torch._foreach_mul_(here, list(factor.to(here[0].dtype).unbind()))


def on(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A learning rate that may be a tensor, where and as ``like`` is."""
    return (
        value.reshape(()).to(like.device, like.dtype, non_blocking=True)
        if isinstance(value, Tensor)
        else value
    )


def decay_(params: Sequence[Tensor], lr: float | Tensor, weight_decay: float) -> None:
    """Decoupled weight decay in place: w <- (1 - lr weight_decay) w."""
    if weight_decay:
        scale_(params, 1 - on(lr, params[0]) * weight_decay)
