"""Which of two ways to the same numbers is the faster one here: measured at the first calls, without waiting.

NOT MEASURED ON A GPU YET, as `steadygrad.probe.kernels`, whose kernel is chosen by it: so only where the variable
``STEADYGRAD_TRITON=1`` asks for it (`steadygrad.probe.norms`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from steadygrad.probe.kernels import can_run, statistics

T = TypeVar("T")

WARM_UP = 2  # pairs of calls that are not timed: compiling, first memory
PAIRS = 5
MAX_CALLS = 100  # without a decision by then, the reference stays
MARGIN = 0.05  # by how much the candidate must be faster: a tie is no reason for the newer code
TRIALS = 64  # kinds of calls that are told apart


def keeps_candidate(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether the candidate is faster, from (reference, candidate) times of neighbouring calls, in any unit.

    The median of their ratios decides, so that one call that was disturbed does not. A pair with a time that is
    not positive and finite says nothing; without pairs the reference stays.

    Example:
        >>> keeps_candidate([(2.0, 1.0), (2.1, 1.0), (2.0, 9.0)]), keeps_candidate([(1.0, 0.99)]), keeps_candidate([])
        (True, False, False)
    """
    ratios = [
        candidate / reference
        for reference, candidate in pairs
        if 0 < reference < math.inf and 0 < candidate < math.inf
    ]
    return bool(ratios) and median(ratios) < 1 - MARGIN


class Stopwatch(Protocol):
    """Times what is put on a device between start and stop. It is read later, and never waits."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def read(self) -> float | None: ...  # None: not done yet


class EventStopwatch:
    """Two CUDA events on the current stream of a device: milliseconds of the GPU, its idle time in between included."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def start(self) -> None:
        self._events[0].record(self._stream)

    def stop(self) -> None:
        self._events[1].record(self._stream)

    def read(self) -> float | None:
        begun, ended = self._events
        return begun.elapsed_time(ended) if ended.query() else None


class Chosen(Generic[T]):
    """A function of tensors that takes the faster of two ways, once it knows which that is.

    The first calls take them in turn, between CUDA events that are asked in later calls whether they have passed;
    no call waits. Then the reference stays unless the candidate was faster by more than 5 % in the median. That
    is found out for each device, dtype, number of tensors and size of the first and last one. Calls that the
    candidate cannot serve, on a CPU above all, take the reference and are not counted.

    Which way is taken depends on the clock, and so may the last digits of the result from run to run; how many
    is up to the two ways. Under ``torch.use_deterministic_algorithms`` the reference is taken.

    Args:
        reference, candidate: from tensors to the same result.
        can_run: whether the candidate can serve these tensors.
        stopwatch: makes one for a device.

    A candidate that raises an error is not tried again for any tensors; `trouble` holds the error.

    Example:
        >>> twice = Chosen(lambda tensors: [2 * t for t in tensors], lambda tensors: [t + t for t in tensors])
        >>> twice([torch.ones(1)])  # on a CPU: the reference
        [tensor([2.])]
    """

    def __init__(
        self,
        reference: Callable[[Sequence[Tensor]], T],
        candidate: Callable[[Sequence[Tensor]], T],
        can_run: Callable[[Sequence[Tensor]], bool] = can_run,
        stopwatch: Callable[[torch.device], Stopwatch] = EventStopwatch,
    ) -> None:
        self.trouble: Exception | None = None
        self._ways = (reference, candidate)
        self._can_run = can_run
        self._stopwatch = stopwatch
        self._trials: dict[tuple[Any, ...], _Trial] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> T:
        trial = self._trial_of(tensors)
        if trial is None:
            return self._ways[0](tensors)
        if trial.candidate_is_faster is None:
            trial.look()
        if trial.candidate_is_faster is not None:
            return self._take(int(trial.candidate_is_faster), tensors)
        stopwatch, way = self._stopwatch(tensors[0].device), trial.turn()
        stopwatch.start()
        found = self._take(way, tensors)
        stopwatch.stop()
        trial.add(stopwatch)
        return found

    def choices(self) -> dict[tuple[Any, ...], bool | None]:
        """Whether the candidate was the faster one, by kind of call; None where that is still being measured."""
        return {kind: trial.candidate_is_faster for kind, trial in self._trials.items()}

    def _trial_of(self, tensors: Sequence[Tensor]) -> _Trial | None:
        if (
            self.trouble is not None
            or not tensors
            or torch.are_deterministic_algorithms_enabled()
            or not self._can_run(tensors)
        ):
            return None
        first = tensors[0]
        kind = (first.device, first.dtype, len(tensors), first.numel(), tensors[-1].numel())
        if kind not in self._trials and len(self._trials) < TRIALS:
            self._trials[kind] = _Trial()
        return self._trials.get(kind)

    def _take(self, way: int, tensors: Sequence[Tensor]) -> T:
        if way == 0 or self.trouble is not None:
            return self._ways[0](tensors)
        try:
            return self._ways[1](tensors)
        except Exception as error:  # noqa: BLE001 - no compiler, an old driver: training goes on with the reference
            self.trouble = error
            return self._ways[0](tensors)


class _Trial:
    """Calls of one kind, the reference and the candidate in turn, until it is known which is faster."""

    def __init__(self) -> None:
        self.candidate_is_faster: bool | None = None
        self._calls: list[Stopwatch] = []

    def turn(self) -> int:
        """0 for the reference, 1 for the candidate. Each goes first in every other pair."""
        pair, second = divmod(len(self._calls), 2)
        return (pair + second) % 2

    def add(self, call: Stopwatch) -> None:
        self._calls.append(call)

    def look(self) -> None:
        """Decide, if enough calls are done."""
        if len(self._calls) < 2 * (WARM_UP + PAIRS):
            return
        pairs = []
        for pair in range(WARM_UP, len(self._calls) // 2):
            first, second = (self._calls[2 * pair + i].read() for i in range(2))
            if first is not None and second is not None:
                pairs.append((first, second) if pair % 2 == 0 else (second, first))
        if len(pairs) >= PAIRS or len(self._calls) >= MAX_CALLS:
            self.candidate_is_faster = len(pairs) >= PAIRS and keeps_candidate(pairs)
            self._calls.clear()


def grouped_norms(tensors: Sequence[Tensor]) -> Tensor:
    """(n,) float32: L2 norms by torch's one grouped call, as the probe takes them. Not finite where an entry is not.

    Example:
        >>> grouped_norms([torch.tensor([3.0, 4.0]), torch.zeros(0)]).tolist()
        [5.0, 0.0]
    """
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float32))


fastest_norms: Chosen[Tensor] = Chosen(grouped_norms, lambda tensors: statistics(tensors).norms)
"""Norms alone, for which torch has a grouped call: the kernel, which finds more, is taken where it costs less even so.
They should differ by 1e-5 (not measured); where an entry is not finite the one is nan or inf, the other inf."""
