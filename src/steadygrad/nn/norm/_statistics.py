"""Batch statistics in float32, and running ones that a non-finite batch cannot reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def batch_statistics(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over ``dims``, kept as dimensions of size 1, in float32 at least."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(values, dim=tuple(dims), correction=0, keepdim=True)
    return mean, var


def unbiased(var: Tensor, count: int) -> Tensor:
    """Variance of the population that ``count`` values were drawn from, as torch's running_var has it."""
    return var * (count / max(count - 1, 1))


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """One 0-D bool: no nan and no inf anywhere. True of nothing."""
    return torch.stack([t.isfinite().all() for t in tensors]).all()


def snapshot(*tensors: Tensor) -> list[Tensor]:
    """Copies of what was read from buffers that are written before the backward pass.

    torch.compile may save a buffer instead of what was computed from it, and compute that anew in the backward
    pass, from the new content: wrong gradients without a word (pytorch/pytorch#197039). It does not do so for
    the result of a cat.
    """
    flat = torch.cat([t.flatten() for t in tensors])
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


@torch.no_grad()
def learn_(running: Tensor, new: Tensor, momentum: Tensor | float, learn: Tensor) -> None:
    """``running <- running + momentum (new - running)`` where ``learn``; elsewhere it keeps every bit."""
    moved = running + momentum * (new.to(running.dtype) - running)
    running.copy_(torch.where(learn, moved, running))
