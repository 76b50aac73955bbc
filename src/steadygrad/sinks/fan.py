"""All sinks of one run: told what the run does, as an observer is, and given its report at the end."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.sinks.feeder import CLOSE_SECONDS, Feeder
from steadygrad.sinks.sink import Event, event_of_action, event_of_finding

if TYPE_CHECKING:
    from steadygrad.records import Action, Finding, StepStats


class Sinks:
    """Feeds every sink of a run, each from a thread of its own. No method raises, and none waits but :meth:`close`.

    Silent in a forked child, and on every rank but the first: by ``RANK``.

    Args:
        sinks: names or objects, checked by :func:`steadygrad.sinks.checked_sinks`.
        run_dir: of the run.
        note: is told, in the training's thread, why a sink was dropped.

    Example:
        >>> Sinks((), Path("runs/train-1"), print).close()
    """

    def __init__(self, sinks: Sequence[Any], run_dir: Path, note: Callable[[str], None]) -> None:
        self._sinks, self._run_dir, self._note = tuple(sinks), run_dir, note
        self._pid = os.getpid()
        self._feeders: list[Feeder] = []
        self._amp_skips = 0
        self._begun = False

    def begin(self) -> None:
        """The first step is about to be taken: open the sinks. What is imported for that is imported here."""
        if self._begun or os.getpid() != self._pid or os.environ.get("RANK", "0") != "0":
            return
        self._begun = True
        for sink in self._sinks:
            name = sink if isinstance(sink, str) else type(sink).__name__
            try:
                if isinstance(sink, str):
                    with _random_streams_kept():
                        module = import_module(f"steadygrad.sinks.{sink}")
                        make: Callable[[], Any] = module.prepare(self._run_dir)
                    every = module.EVERY
                else:
                    make, every = partial(_given, sink), max(1, int(getattr(sink, "every", 1)))
                self._feeders.append(Feeder(name, make, every))
            except Exception as error:  # noqa: BLE001 - whatever a sink does, the run goes on without it
                self._note(f"the sink {name} cannot be used ({type(error).__name__}: {error})")

    def step(self, stats: StepStats, skipped: int, incidents: int) -> None:
        """An optimizer step is over."""
        if not self._feeders or os.getpid() != self._pid:
            return
        self._amp_skips += stats.amp_skips
        for feeder in self._feeders:
            feeder.step(stats, skipped, incidents, self._amp_skips)
        if any(feeder.trouble is not None for feeder in self._feeders):
            self.tell()

    def finding(self, finding: Finding) -> None:
        """A rule noticed something."""
        self._event(event_of_finding(finding))

    def action(self, action: Action) -> None:
        """The guard did something."""
        self._event(event_of_action(action))

    def tell(self) -> None:
        """Say which sinks were dropped, and why."""
        for feeder in [f for f in self._feeders if f.trouble is not None]:
            self._feeders.remove(feeder)
            self._note(f"the sink {feeder.name} {feeder.trouble}; the run goes on without it")

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """The run is over and its record is closed: give the report, and wait so long for all sinks together."""
        if os.getpid() != self._pid:
            return
        self.tell()
        if not self._feeders:
            return
        report: Path | None = None
        try:
            from steadygrad.report.html import write_report  # the page is only made where there is a sink

            report = write_report(self._run_dir)
        except Exception as error:  # noqa: BLE001 - a sink without a report is still of use
            self._note(f"the report for the sinks could not be made ({type(error).__name__}: {error})")
        for feeder in self._feeders:
            feeder.end(report)
        until = time.monotonic() + seconds
        for feeder in self._feeders:
            feeder.wait(max(0.0, until - time.monotonic()))
        self.tell()
        self._feeders.clear()

    def _event(self, event: Event | None) -> None:
        if event is None or os.getpid() != self._pid:
            return
        for feeder in self._feeders:
            feeder.event(event)


def _given(sink: Any) -> Any:
    return sink


@contextmanager
def _random_streams_kept() -> Iterator[None]:
    """Some packages draw random numbers when they are imported; the script's are to be what they would be."""
    kept = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    of_torch = torch.get_rng_state() if torch is not None else None
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        if torch is not None:
            torch.set_rng_state(of_torch)
