"""A row of the table of speed, and how much is measured for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.speed_clock import Estimate

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is measured: the share of the full number of rounds."""

    share: float = 1.0

    def of(self, count: int, least: int = 3) -> int:
        """``count`` rounds, or the share of them."""
        return max(min(count, least), round(count * self.share))


FULL, QUICK = Effort(), Effort(0.05)


class Missing(Exception):
    """A peer is not installed: its rows cannot be made here."""


def row(
    name: str, value: Estimate | float, *, unit: str, cadence: str, goal: float | None = None, rounds: int = 1
) -> Row:
    """One number of which less is better.

    Args:
        name: unique in the table.
        value: a median with its interval, or a number that stands for itself.
        unit: of the value.
        cadence: what was done how often, on what.
        goal: the most that is promised; None for a number that stands beside the others.
        rounds: of a plain number.
    """
    low = high = None
    if isinstance(value, Estimate):
        value, low, high, rounds = value
    return {
        "name": name,
        "value": value,
        "goal": goal,
        "unit": unit,
        "low": low,
        "high": high,
        "rounds": rounds,
        "cadence": cadence,
    }
