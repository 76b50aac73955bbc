"""Checks of what the activations are given."""

from __future__ import annotations

import math

from torch import Tensor

from steadygrad._check import count


def groups_of(x: Tensor, size: int, dim: int) -> int:
    """How many groups of ``size`` lie along ``dim``; raises where they do not fit."""
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {x.dtype}: convert it with x.float()")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"x has no dimension {dim}: its shape is {tuple(x.shape)}")
    if x.shape[dim] % size:
        raise ValueError(
            f"dimension {dim} of x must be a multiple of {size}, got shape {tuple(x.shape)}: "
            f"give the layer before it a width that is"
        )
    return x.shape[dim] // size


def at_least_two(size: int) -> int:
    return count("group_size", size, 2, ": groups of one are left as they are")


def checked_limit(limit: float | None) -> float | None:
    if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
        raise ValueError(f"limit must be a positive finite number or None, got {limit!r}")
    return limit


def dimension(dim: int) -> int:
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    return dim
