"""What the rules have in common that read a portrait: the graph of a sampled backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, LayerStats, Portrait, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule


@dataclass(frozen=True)
class Seen:
    """One thing that a portrait shows."""

    where: str
    message: str
    evidence: dict[str, float]


@dataclass
class PortraitRule(Rule):
    """Base: looks at each portrait, speaks when the condition begins."""

    needs: ClassVar = ("portrait",)

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if stats.portrait is None:
            return None
        seen = self.look(stats.portrait, stats)
        if not self.onset.begins(self.severity if seen is not None else None) or seen is None:
            return None
        return self.tell(stats, self.severity, seen.where, seen.message, **seen.evidence)

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        raise NotImplementedError


def stack(portrait: Portrait) -> list[LayerStats]:
    """The layers one on top of the other: each used once, with a gradient; lookup tables and recurrences are none."""
    repeated = {r.name for r in portrait.recurrences}
    return [
        row
        for row in portrait.layers
        if row.name not in repeated
        and row.op != "Embedding"
        and row.uses == 1
        and not math.isnan(row.grad_rms)
    ]


def decades(large: float, small: float) -> float:
    """log10(large / small), nan where it has no meaning."""
    if not (large > 0 and small > 0 and math.isfinite(large) and math.isfinite(small)):
        return math.nan
    return math.log10(large) - math.log10(small)


def biggest_jump(rows: Sequence[LayerStats], values: Sequence[float]) -> tuple[str, float]:
    """The layer that makes the signal larger than all others do, and by how many decades; nan if none is known.

    Args:
        rows: layers in the order in which the signal runs through them.
        values: what goes into each, and, if there is one more, what comes out of the last.
    """
    best, where = math.nan, ""
    for row, before, after in zip(rows, values, values[1:], strict=False):
        step = decades(after, before)
        if step > best or math.isnan(best) and not math.isnan(step):
            best, where = step, row.name
    return where, best


def times(growth: float) -> str:
    """Decades as a factor, for people."""
    return "without bound" if math.isinf(growth) else f"x{10**growth:.3g}"
