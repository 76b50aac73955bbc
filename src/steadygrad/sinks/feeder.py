"""The thread that feeds one sink from a bounded queue. The training thread only appends to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadygrad.sinks.aggregates import Aggregates
from steadygrad.sinks.pace import next_stride

if TYPE_CHECKING:
    from steadygrad.records import StepStats
    from steadygrad.sinks.sink import Event, Sink

FLUSH_SECONDS = 1.0  # between two batches
CLOSE_SECONDS = 60.0  # that the end of a run waits for a sink
MAX_STEPS = 512  # that wait, or fewer
MAX_BYTES = 16 << 20  # that they keep alive
MAX_EVENTS = 1000  # in a run


class Feeder:
    """Feeds one sink. What the sink raises ends it; :attr:`trouble` then says why.

    Args:
        name: of the sink, for people.
        make: makes the sink; called in the feeder's thread.
        every: give it each such step, counted by the optimizer's own steps.

    A step that was skipped or is not finite is given whatever the cadence, if the step before it was neither.
    """

    def __init__(self, name: str, make: Callable[[], Sink], every: int = 1) -> None:
        self.name = name
        self.trouble: str | None = None  # why the sink was dropped
        self.left_out = 0  # steps that were to be given and had no room
        self._make, self._every, self._stride = make, every, every
        self._steps: list[tuple[StepStats, int, int, int]] = []
        self._events: list[Event] = []
        self._num_events = 0
        self._was_odd: set[int] = set()  # optimizers whose last step was skipped or not finite
        self._report: Path | None = None
        self._closing = False
        self._asked = self._given = 0  # how often it was asked to be drained, and was
        self._state = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"steadygrad-{name}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the training thread
    def step(self, stats: StepStats, skipped: int, incidents: int, amp_skips: int) -> None:
        """Queue one step, if it is one of those to be given."""
        odd = not (stats.applied and stats.finite)
        first_odd = odd and stats.optimizer not in self._was_odd
        (self._was_odd.add if odd else self._was_odd.discard)(stats.optimizer)
        if stats.step % self._stride and not first_odd:
            return
        with self._state:
            if self.trouble is not None or self._closing:
                return
            if len(self._steps) >= min(MAX_STEPS, max(8, MAX_BYTES // held_bytes(stats))):
                self._thin()
            if stats.portrait is not None:
                stats = replace(stats, portrait=None)  # large, and of no use here
            self._steps.append((stats, skipped, incidents, amp_skips))

    def event(self, event: Event) -> None:
        """Queue something that happened."""
        with self._state:
            self._num_events += 1
            if self.trouble is None and not self._closing and self._num_events <= MAX_EVENTS:
                self._events.append(event)

    def drain(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Wait until the sink has been given all that is queued so far; False if that takes longer."""
        with self._state:
            self._asked += 1
            ticket = self._asked
            self._state.notify_all()
            return self._state.wait_for(lambda: self._given >= ticket or self.trouble is not None, seconds)

    def end(self, report: Path | None) -> None:
        """Give it the rest and the report, and close it."""
        with self._state:
            self._report, self._closing = report, True
            self._state.notify_all()

    def wait(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until it is closed. :attr:`trouble` says what went wrong."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.trouble = f"has not taken everything within {seconds:g} seconds and is not waited for"

    def _thin(self) -> None:
        """The sink is slower than the run: every second step makes room. Called holding the lock."""
        self.left_out += len(self._steps) - len(self._steps[::2])
        self._steps = self._steps[::2]
        self._stride = next_stride(self._stride, self._every, 1.0, 1.0)

    # ------------------------------------------------------------------ its own thread
    def _run(self) -> None:
        try:
            sink = self._make()
            try:
                self._feed(sink)
            finally:
                sink.close()
        except BaseException as error:  # noqa: BLE001 - whatever a sink does, the run goes on without it
            with self._state:
                self.trouble = _told(error)
                self._steps, self._events = [], []
                self._state.notify_all()

    def _feed(self, sink: Sink) -> None:
        aggregates = Aggregates()
        flush: Callable[[], Any] = getattr(sink, "flush", lambda: None)
        began, spent = time.monotonic(), 0.0
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closing or self._asked > self._given, FLUSH_SECONDS)
                asked, closing = self._asked, self._closing
                steps, self._steps = self._steps, []
                events, self._events = self._events, []
            clock = time.thread_time()
            for stats, skipped, incidents, amp_skips in steps:
                scalars = aggregates(stats, skipped, incidents, amp_skips)
                if scalars:
                    sink.write(scalars, stats.step)
            for event in events:
                sink.event(event)
            if steps or events:
                flush()
            spent += time.thread_time() - clock
            with self._state:
                self._given = asked
                self._state.notify_all()
            if closing:
                break
            now = time.monotonic()
            if now - began >= FLUSH_SECONDS:
                self._stride = next_stride(self._stride, self._every, spent, now - began)
                began, spent = now, 0.0
        if self._report is not None:
            sink.artifact(self._report)
            flush()


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"failed ({type(error).__name__}{': ' + lines[0][:300] if lines else ''})"


def held_bytes(stats: StepStats) -> int:
    """Bytes that a waiting step keeps alive, about.

    Example:
        >>> import numpy as np
        >>> from steadygrad.records import StepStats
        >>> held_bytes(StepStats(0, 0, 0.5, 5.0, 1.0, np.zeros(2, dtype=np.float32), 0.1))
        608
    """
    return stats.grad_norms.nbytes + 600 + 250 * (len(stats.tensors) + len(stats.activations))
