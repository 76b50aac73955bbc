"""Checks of arguments that the recurrent layers share."""

from __future__ import annotations

import math


def count(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def number(name: str, value: float, least: float = -math.inf, *, above: bool = False) -> float:
    """A finite number, at least ``least``, or above it."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < least or (above and value == least):
        bound = "" if least == -math.inf else f" and {'above' if above else 'at least'} {least:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}")
    return float(value)


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value
