"""Make chunks of queued records: those of one signal together, in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from steadygrad.trace.blocks import widen
from steadygrad.trace.codec import encode
from steadygrad.trace.schema import SCALAR
from steadygrad.trace.signals import STEP_KEYS, STEP_STATS, Unfolding, scalar_chunks
from steadygrad.trace.waiting import Chunk, Detail, Exact, Key, Whole

Single = TypeVar("Single", Detail, Exact)


def detail_chunks(queue: Iterable[Detail | Whole], unfolding: Unfolding) -> Iterator[Chunk]:
    """The detail of all that was queued."""
    for whole, single in _runs(queue, lambda detail: detail.stat in STEP_STATS):
        yield from unfolding.chunks(whole)
        yield from _details(single)


def exact_chunks(queue: Iterable[Exact | Whole]) -> Iterator[Chunk]:
    """The scalars of all that was queued."""
    for whole, single in _runs(queue, lambda exact: not STEP_KEYS.isdisjoint(exact.values)):
        yield from scalar_chunks(whole)
        yield from _exacts(single)


def _runs(
    queue: Iterable[Single | Whole], alike: Callable[[Single], bool]
) -> Iterator[tuple[list[Whole], list[Single]]]:
    """Step records, and the single ones that may come after them: a new run where a step record follows a single
    one that is ``alike``, of a signal that both might have, so that the order of each signal stays.
    """
    whole: list[Whole] = []
    single: list[Single] = []
    mixed = False
    for record in queue:
        if not isinstance(record, Whole):
            single.append(record)
            mixed = mixed or alike(record)
            continue
        if mixed:
            yield whole, single
            whole, single, mixed = [], [], False
        whole.append(record)
    yield whole, single


def _details(details: Iterable[Detail]) -> Iterator[Chunk]:
    by_key: dict[Key, list[Detail]] = defaultdict(list)
    for detail in details:
        by_key[detail.key].append(detail)
    for key, group in by_key.items():
        steps = [d.step for d in group]
        if key[-1] == "dense":
            width = max(len(d.values) for d in group)
            if all(len(d.values) == width for d in group):
                codes = encode(np.stack([d.values for d in group]))
            else:
                codes = np.concatenate([widen(encode(d.values)[None], width) for d in group])
            yield Chunk(key, steps, width, codes)
        else:
            columns = np.concatenate([d.columns for d in group if d.columns is not None])
            codes = encode(np.concatenate([d.values for d in group]))
            counts = [len(d.values) for d in group]
            yield Chunk(key, steps, int(columns.max()) + 1, codes, counts, columns)


def _exacts(exacts: Iterable[Exact]) -> Iterator[Chunk]:
    by_key: dict[Key, list[tuple[int, float]]] = defaultdict(list)
    for exact in exacts:
        for name, value in exact.values.items():
            by_key[exact.attempt, exact.optimizer, SCALAR, name, "exact"].append((exact.step, value))
    for key, points in by_key.items():
        steps, values = zip(*points, strict=True)
        yield Chunk(key, list(steps), 1, np.array(values, dtype=np.float64))
