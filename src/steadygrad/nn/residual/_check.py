"""Checks of arguments that the layers and the builders share."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def probability(name: str, value: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number between 0 and 1, got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return float(value)


def finite(name: str, value: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def count(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def factory(name: str, value: Any) -> None:
    """A class or function that makes a module; a module itself would be shared by all places that ask for one."""
    if isinstance(value, nn.Module) or not callable(value):
        raise TypeError(
            f"{name} must be a module class or a factory, got {type(value).__name__}: pass the class itself, or "
            "functools.partial of it with its settings"
        )
