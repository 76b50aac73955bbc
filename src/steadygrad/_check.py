"""Checks of arguments: each error names the argument, the value and the bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any


def count(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """``value`` as an int of at least ``least``; numpy's integers pass, bool does not."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}{hint}")
    whole = int(value.__index__())
    if whole < least:
        raise ValueError(f"{name} must be at least {least}, got {whole}{hint}")
    return whole


def number(name: str, value: Any, least: float = -math.inf, *, above: bool = False) -> float:
    """A finite number of at least ``least``, or above it."""
    value = _real(name, value)
    if not math.isfinite(value) or value < least or (above and value == least):
        bound = "" if least == -math.inf else f" and {'above' if above else 'at least'} {least:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}")
    return value


def positive(name: str, value: Any, *, finite: bool = False) -> float:
    """A number above 0; inf passes unless ``finite``."""
    value = _real(name, value)
    if not value > 0 or (finite and math.isinf(value)):  # nan fails too
        raise ValueError(f"{name} must be positive{' and finite' if finite else ''}, got {value}")
    return value


def fraction(name: str, value: Any, *, zero: bool = True, one: bool = True) -> float:
    """A number between 0 and 1; ``zero`` and ``one``: whether the ends belong to it."""
    share = _real(name, value)
    low = share >= 0 if zero else share > 0
    high = share <= 1 if one else share < 1
    if not (low and high):  # nan fails too
        ends = f"{'at least' if zero else 'above'} 0 and {'at most' if one else 'below'} 1"
        raise ValueError(f"{name} must be {'between 0 and 1' if zero and one else ends}, got {value}")
    return share


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """One of some words."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def training_mode(model: Any, call: str) -> None:
    """A controller changes weights; of a model in evaluation mode they are to stay."""
    if not model.training:
        raise RuntimeError(
            f"{call} on a model in evaluation mode: its weights are to stay as they are; call model.train() before"
        )


def state(kind: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """A saved state with the names of ``wanted``, and with its names inside of them."""
    if set(given) != set(wanted):
        raise ValueError(f"not a state of {kind}: it has {sorted(given)}, wanted {sorted(wanted)}")
    for name, value in wanted.items():
        if isinstance(value, dict) and set(value) != set(given[name]):
            raise ValueError(
                f"{name} of the state is of other layers: {sorted(given[name])}, not {sorted(value)}"
            )


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)
