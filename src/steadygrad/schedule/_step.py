"""The step that every schedule is a function of."""

from __future__ import annotations

from typing import Any

from steadygrad._check import count


def checked_step(value: Any) -> int:
    """A step, counted from 0."""
    return count("step", value, 0, ": steps count from 0")
