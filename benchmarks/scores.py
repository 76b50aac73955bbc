"""Scores of the benchmarks: shares with their intervals, precision and recall, F1, calibration, lead times. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Z95 = 1.959963984540054


def wilson(hits: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % by default; (nan, nan) for a share of nothing.

    Example:
        >>> [round(x, 3) for x in wilson(8, 10)]
        [0.49, 0.943]
    """
    if not of:
        return math.nan, math.nan
    p = hits / of
    middle = p + z * z / (2 * of)
    half = z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)  # else 1e-17 below 0 for no hits


@dataclass(frozen=True)
class Share:
    """``hits`` of ``of``."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        return self.hits / self.of if self.of else math.nan

    def __str__(self) -> str:
        if not self.of:
            return "-"
        low, high = wilson(self.hits, self.of)
        return f"{self.value:.3f} ({self.hits}/{self.of}, {low:.2f}-{high:.2f})"

    def to_json(self) -> dict[str, Any]:
        """``value`` and ``interval`` are None for a share of nothing."""
        known = self.of > 0
        return {
            "hits": self.hits,
            "of": self.of,
            "value": self.value if known else None,
            "interval": list(wilson(self.hits, self.of)) if known else None,
        }


def share(flags: Iterable[bool]) -> Share:
    flags = list(flags)
    return Share(sum(map(bool, flags)), len(flags))


def precision_recall(flagged: Sequence[bool], failed: Sequence[bool]) -> tuple[Share, Share]:
    """Of the flagged how many failed, and of those that failed how many were flagged."""
    hits = sum(f and b for f, b in zip(flagged, failed, strict=True))
    return Share(hits, sum(flagged)), Share(hits, sum(failed))


def f1_by_class(told: Iterable[tuple[Collection[str], str | None]]) -> dict[str, float]:
    """F1 of each class that occurs, one against the rest.

    ``told``: of each run the names that count as right, the canonical one first, and the name that was said, None for
    nothing. A name that counts as right is taken for the canonical one. A name that is never true has no F1 of its own:
    it costs the recall of the class that was meant.
    """
    pairs = [(list(right)[0], list(right)[0] if said in right else said) for right, said in told]
    return {
        name: 2 * sum(t == s == name for t, s in pairs) / (sum(t == name for t, _ in pairs) + said)
        for name in sorted({t for t, _ in pairs})
        for said in [sum(s == name for _, s in pairs)]
    }


def macro_f1(told: Iterable[tuple[Collection[str], str | None]]) -> float:
    """Mean of `f1_by_class`; nan without a run."""
    scores = f1_by_class(told)
    return sum(scores.values()) / len(scores) if scores else math.nan


def confusions(told: Iterable[tuple[Sequence[str], str | None]]) -> list[tuple[str, str, int]]:
    """What is taken for what, most often first: (true, said, times). Said nothing is "nothing"."""
    counts = Counter((right[0], said or "nothing") for right, said in told if said not in right)
    return [(*pair, n) for pair, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


@dataclass(frozen=True)
class Bin:
    """Predictions with a probability in [low, high), the last bin with its upper end."""

    low: float
    high: float
    count: int
    said: float  # mean probability; nan for an empty bin
    was: float  # share that was right; nan for an empty bin


def reliability(pairs: Iterable[tuple[float, bool]], bins: int = 10) -> tuple[list[Bin], float]:
    """A table of probability against share right, and the expected calibration error: the mean over predictions of the
    distance between the two in their bin; nan without predictions."""
    pairs = list(pairs)
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for p, right in pairs:
        groups[min(int(p * bins), bins - 1)].append((p, right))
    table = []
    for i, group in enumerate(groups):
        said = sum(p for p, _ in group) / len(group) if group else math.nan
        was = sum(right for _, right in group) / len(group) if group else math.nan
        table.append(Bin(i / bins, (i + 1) / bins, len(group), said, was))
    gaps = [b.count * abs(b.said - b.was) for b in table if b.count]
    return table, sum(gaps) / len(pairs) if pairs else math.nan


def onset(losses: Sequence[float], factor: float = 10.0) -> int | None:
    """First step whose loss is not finite or above ``factor`` times the size of the first one; None: there is none."""
    if not losses:
        return None
    bound = factor * abs(losses[0])
    return next((i for i, x in enumerate(losses) if not math.isfinite(x) or x > bound), None)


@dataclass(frozen=True)
class Lead:
    """How early an alarm came. A lead is counted in steps before the onset; negative: after it."""

    runs: int
    spoke: int
    before: Share  # spoke before the onset
    by_next: Share  # spoke at the latest one step after it
    quartiles: tuple[float, float, float]  # of the leads of the runs in which it spoke; nan if in none

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "spoke": self.spoke,
            "caught_before": self.before.to_json(),
            "caught_by_onset_plus_1": self.by_next.to_json(),
            "lead_quartiles": list(self.quartiles) if self.spoke else None,
        }


def lead_time(runs: Iterable[tuple[int, int | None]]) -> Lead:
    """From (onset, first alarm) of each run; None: it never spoke."""
    runs = list(runs)
    leads = [start - first for start, first in runs if first is not None]
    q = np.percentile(leads, [25, 50, 75]) if leads else [math.nan] * 3
    return Lead(
        runs=len(runs),
        spoke=len(leads),
        before=Share(sum(x > 0 for x in leads), len(runs)),
        by_next=Share(sum(x >= -1 for x in leads), len(runs)),
        quartiles=(float(q[0]), float(q[1]), float(q[2])),
    )


def to_json(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Nested scores as plain data; numbers that are not finite become None."""

    def plain(value: Any) -> Any:
        if hasattr(value, "to_json"):
            return plain(value.to_json())
        if isinstance(value, Bin):
            return plain(vars(value))
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    result: dict[str, Any] = plain(scores)
    return result
