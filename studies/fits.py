"""Straight lines through measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from statistics import linear_regression
from typing import TypeVar

T = TypeVar("T")


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the line of least squares; nan if a point is not finite.

    Example:
        >>> slope([0, 1, 2], [1.0, 3.0, 5.0])
        2.0
    """
    return linear_regression(xs, ys).slope if all(map(math.isfinite, ys)) else math.nan


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The power of x that y goes with, from a line in logarithms."""
    return slope([math.log(x) for x in xs], [math.log(y) if y > 0 else -math.inf for y in ys])


def shuffled(values: Sequence[T]) -> list[T]:
    """The same values in another order, always the same one: for negative controls."""
    return Random(1).sample(list(values), len(values))
