"""Times side by side: every candidate once a round, in random order, in one process and on one thread."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import NamedTuple

import numpy as np

Seconds = Sequence[float]


class Estimate(NamedTuple):
    """A median over rounds, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    rounds: int


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: int = 2,
    clock: Callable[[], float] = time.thread_time,
    before: Callable[[], object] | None = None,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call in each round.

    Args:
        calls: the candidates.
        rounds: how often each is timed.
        warm: rounds before those, not timed.
        clock: the default counts CPU seconds of this thread: what others do on the machine, and what threads of a
            peer do in the background, is no part of it. ``time.perf_counter`` counts everything.
        before: called before each call, outside the clock.
        around: of some candidates, a context to be entered outside the clock.

    Example:
        >>> found = interleave({"one": lambda: None, "two": lambda: None}, rounds=3)
        >>> {name: len(seconds) for name, seconds in found.items()}
        {'one': 3, 'two': 3}
    """
    order, draw = list(calls), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for i in range(warm + rounds):
        draw.shuffle(order)
        for name in order:
            if before is not None:
                before()
            with (around or {}).get(name, nullcontext)():
                begun = clock()
                calls[name]()
                seconds = clock() - begun
            if i >= warm:
                found[name].append(seconds)
    return found


def typical(values: Seconds) -> Estimate:
    """The median, with an interval from 1,000 samples drawn with replacement."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (1000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Estimate(median(values), float(low), float(high), len(values))


def ratio(ours: Seconds, others: Seconds) -> Estimate:
    """How many times the other's time we take: the median over the pairs of a round."""
    return typical([a / b for a, b in zip(ours, others, strict=True)])


def beyond(ours: Seconds, base: Seconds, unit: Seconds) -> Estimate:
    """What we take beyond ``base``, in units of ``unit``: the median over rounds."""
    return typical([(a - b) / c for a, b, c in zip(ours, base, unit, strict=True)])
