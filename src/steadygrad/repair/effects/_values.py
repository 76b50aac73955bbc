"""Values of a plan, as JSON gives them back, brought to what an effect can use."""

from __future__ import annotations

import math
from typing import Any

from steadygrad.repair.effects.effect import NotApplicable


def positive(key: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        NotApplicable: anything else.

    Example:
        >>> positive("clip_norm", 2)
        2.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise NotApplicable(f"{key} must be a finite number above 0, got {value!r}")
    return float(value)


def fraction(key: str, value: Any) -> float:
    """A number from 0 up to, but not including, 1: a momentum or a beta.

    Raises:
        NotApplicable: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise NotApplicable(f"{key} must be at least 0 and below 1, got {value!r}")
    return float(value)


def count(key: str, value: Any) -> int:
    """A whole number of at least 1; 5.0 is one.

    Raises:
        NotApplicable: anything else.
    """
    number = positive(key, value)
    if number != int(number):
        raise NotApplicable(f"{key} must be a whole number, got {value!r}")
    return int(number)
