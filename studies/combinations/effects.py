"""Main effects and interactions of a two-level design."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean


@dataclass(frozen=True)
class Effect:
    """What switching a factor on changes; for a pair, how much more it changes with the other on than off, halved."""

    factors: tuple[str, ...]
    size: float
    error: float  # standard error, from the spread between seeds

    @property
    def clear(self) -> bool:
        """Beyond 3.5 standard errors: of the 36 effects of a net, one in 60 nets would be so by chance."""
        return abs(self.size) > 3.5 * self.error


Effects = dict[tuple[str, ...], Effect]


def effects_of(names: Sequence[str], settings: Sequence[Sequence[bool]], answers: Sequence[float]) -> Effects:
    """Every main effect and every effect of a pair.

        effect(A) = mean(y | A on) - mean(y | A off)
        effect(A, B) = mean(y | A and B alike) - mean(y | one of the two)

    Args:
        names: of the factors.
        settings: the levels of each run, one run a seed.
        answers: y, one number a run.

    Source: Box, Hunter & Hunter (2005), Statistics for Experimenters, chapters 5 and 6.
    """
    error = 2 * _spread(settings, answers) / math.sqrt(len(answers))
    found: Effects = {}
    groups = [(i,) for i in range(len(names))] + list(combinations(range(len(names)), 2))
    for group in groups:
        signs = [math.prod(1 if setting[i] else -1 for i in group) for setting in settings]
        high = fmean(y for y, sign in zip(answers, signs, strict=True) if sign > 0)
        low = fmean(y for y, sign in zip(answers, signs, strict=True) if sign < 0)
        key = tuple(names[i] for i in group)
        found[key] = Effect(key, high - low, error)
    return found


def _spread(settings: Sequence[Sequence[bool]], answers: Sequence[float]) -> float:
    """Standard deviation between runs of the same setting."""
    same: dict[tuple[bool, ...], list[float]] = {}
    for setting, y in zip(settings, answers, strict=True):
        same.setdefault(tuple(setting), []).append(y)
    squares = sum((y - fmean(ys)) ** 2 for ys in same.values() for y in ys)
    freedom = sum(len(ys) - 1 for ys in same.values())
    return math.sqrt(squares / freedom)
