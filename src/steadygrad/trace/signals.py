"""How the fields of a step record are called in the trace, and which of their nans mean "not measured".

Many records are taken apart at once, field by field: the thread that does it shares its interpreter with training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from steadygrad.records import StepStats
from steadygrad.trace.blocks import Codes, widen
from steadygrad.trace.codec import ABSENT, encode
from steadygrad.trace.schema import MODULE, MODULE_STATS, PARAM, PARAM_STATS, SCALAR, SCALAR_KEYS
from steadygrad.trace.waiting import Chunk, Whole

Find = Callable[[str, int, Sequence[Any] | np.ndarray], npt.NDArray[np.int64]]
"""Columns of tensors: ``find(kind, optimizer, ids)``, -1 for what was not declared."""

_SCALARS: dict[str, Callable[[StepStats], Any]] = {key: attrgetter(key) for key in SCALAR_KEYS}
_SCALARS["seconds"] = lambda stats: None if math.isnan(stats.seconds) else stats.seconds

STEP_KEYS = frozenset(SCALAR_KEYS)
STEP_STATS = frozenset(PARAM_STATS) | frozenset(MODULE_STATS)


def scalar_chunks(records: Iterable[Whole]) -> Iterator[Chunk]:
    """The exact scalars of many steps, one chunk per key."""
    for (attempt, optimizer), steps in _by_optimizer(records):
        for key, of in _SCALARS.items():
            seen = [(s.step, value) for s in steps if (value := of(s)) is not None]
            if seen:
                numbers = np.array([value for _, value in seen], dtype=np.float64)
                yield Chunk((attempt, optimizer, SCALAR, key, "exact"), [t for t, _ in seen], 1, numbers)


class Unfolding:
    """Takes the detail of step records apart, in their order.

    Args:
        find: gives the columns of parameters and modules.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._had: dict[int, np.ndarray] = {}  # optimizer -> which parameters had a gradient last
        self.unknown = 0  # values of tensors that nobody had declared

    def chunks(self, records: Iterable[Whole]) -> Iterator[Chunk]:
        """One chunk per signal of many steps. A nan in it was measured."""
        for (attempt, optimizer), steps in _by_optimizer(records):
            numbers = [s.step for s in steps if len(s.grad_norms)]
            codes = self._norms(optimizer, steps)
            if numbers:
                yield Chunk((attempt, optimizer, PARAM, "grad_norm", "dense"), numbers, codes.shape[1], codes)
            yield from self._tensors(attempt, optimizer, steps)
            yield from self._modules(attempt, optimizer, steps)

    def _norms(self, optimizer: int, steps: Sequence[StepStats]) -> Codes:
        """(steps, parameters): codes of the gradient norms, without the steps that have none at all."""
        runs = []
        for width, same in groupby(steps, key=lambda s: len(s.grad_norms)):
            run = list(same)
            norms = _floats(np.array([s.grad_norms for s in run]))
            norms[~self._had_gradient(optimizer, run, norms)] = ABSENT
            if width:
                runs.append(encode(norms))
        width = max((codes.shape[1] for codes in runs), default=0)
        return np.concatenate([widen(codes, width) for codes in runs]) if runs else np.zeros((0, 0), np.int16)

    def _had_gradient(self, optimizer: int, run: Sequence[StepStats], norms: np.ndarray) -> np.ndarray:
        """Which parameters had a gradient, (steps, parameters): in a record nan says both "none" and "nan".

        Where the joint norm is a number, nan says that there was none. Where it is not, a parameter has a gradient
        now if it had one at the step before; if nothing is known, every one has.
        """
        had = ~np.isnan(norms)
        before = self._had.get(optimizer)
        for i, stats in enumerate(run):
            if math.isnan(stats.grad_norm):
                had[i] |= True if before is None or len(before) != had.shape[1] else before
            before = had[i]
        self._had[optimizer] = had[-1].copy()
        return had

    def _tensors(self, attempt: int, optimizer: int, steps: Sequence[StepStats]) -> Iterator[Chunk]:
        tensors = [t for s in steps for t in s.tensors]
        if not tensors:
            return
        at = np.repeat(np.arange(len(steps)), [len(s.tensors) for s in steps])
        columns = self._find(PARAM, optimizer, [t.param for t in tensors])
        grad_max_abs, weight_norm, update_ratio, adam_rms = (
            np.array([of(t) for t in tensors], dtype=np.float64)
            for of in map(attrgetter, ("grad_max_abs", "weight_norm", "update_ratio", "adam_rms"))
        )
        applied = np.array([s.applied for s in steps])[at]
        bad_state = ~np.array([t.state_finite for t in tensors])
        bad_weight = ~np.array([t.weight_finite for t in tensors])
        everywhere, ones = np.ones(len(tensors), bool), np.ones(len(tensors))
        for stat, values, there in (
            ("grad_max_abs", grad_max_abs, everywhere),
            ("weight_norm", weight_norm, everywhere),
            ("update_ratio", update_ratio, applied & (weight_norm != 0)),
            ("adam_rms", adam_rms, bad_state | ~np.isnan(adam_rms)),
            ("state_nonfinite", ones, bad_state),
            ("weight_nonfinite", ones, bad_weight),
        ):
            yield from self._sparse((attempt, optimizer, PARAM, stat), steps, at, columns, values, there)

    def _modules(self, attempt: int, optimizer: int, steps: Sequence[StepStats]) -> Iterator[Chunk]:
        outputs = [a for s in steps for a in s.activations]
        if not outputs:
            return
        at = np.repeat(np.arange(len(steps)), [len(s.activations) for s in steps])
        columns = self._find(MODULE, optimizer, [a.module for a in outputs])
        for stat, field in zip(MODULE_STATS, ("rms", "dead", "saturated", "input_rms"), strict=True):
            values = np.array([getattr(a, field) for a in outputs], dtype=np.float64)
            there = np.ones(len(values), bool) if field == "rms" else ~np.isnan(values)
            yield from self._sparse((attempt, optimizer, MODULE, stat), steps, at, columns, values, there)

    def _sparse(
        self,
        signal: tuple[int, int, str, str],
        steps: Sequence[StepStats],
        at: np.ndarray,
        columns: npt.NDArray[np.int64],
        values: np.ndarray,
        there: np.ndarray,
    ) -> Iterator[Chunk]:
        """The chunk of the values that are ``there``; ``at`` is the place in ``steps`` of each."""
        declared = columns >= 0
        self.unknown += int((there & ~declared).sum())
        there = there & declared
        counts = np.bincount(at[there], minlength=len(steps))
        given = np.flatnonzero(counts).tolist()
        if given:
            where = columns[there].astype(np.uint32)
            yield Chunk(
                (*signal, "sparse"),
                [steps[i].step for i in given],
                int(where.max()) + 1,
                encode(values[there]),
                counts[given].tolist(),
                where,
            )


def _by_optimizer(records: Iterable[Whole]) -> Iterable[tuple[tuple[int, int], list[StepStats]]]:
    groups: dict[tuple[int, int], list[StepStats]] = defaultdict(list)
    for record in records:
        groups[record.attempt, record.stats.optimizer].append(record.stats)
    return groups.items()


def _floats(array: np.ndarray) -> np.ndarray:
    """In float32 or float64."""
    if array.dtype.kind == "f" and array.dtype.itemsize >= 4:
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)
