"""Checks of arguments: each error names the value, the bound and the next move."""

from __future__ import annotations

import math
from typing import Any


def count(name: str, value: Any, least: int, hint: str = "") -> int:
    """``value`` as an int of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}{hint}")
    whole = int(value.__index__())
    if whole < least:
        raise ValueError(f"{name} must be at least {least}, got {whole}{hint}")
    return whole


def step(value: Any) -> int:
    """A step, counted from 0."""
    return count("step", value, 0, ": steps count from 0")


def fraction(name: str, value: float, *, zero: bool = True, one: bool = True) -> float:
    """A number between 0 and 1; nan fails. ``zero`` and ``one``: whether the ends belong to it."""
    low = value >= 0 if zero else value > 0
    high = value <= 1 if one else value < 1
    if not (low and high):
        bounds = f"{'at least' if zero else 'above'} 0 and {'at most' if one else 'below'} 1"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return value


def positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return value
