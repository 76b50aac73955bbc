"""Into Trackio: the script's current run if it has one, else one of ours."""

from __future__ import annotations

import builtins
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadygrad.sinks.sink import Event, Sink

PROJECT = "steadygrad"
STEP = "steadygrad/step"
PRINTING = ("trackio", "trackio.run", "trackio.utils")  # its modules that print what they do

EVERY = 1  # steps


def prepare(run_dir: Path) -> Callable[[], Sink]:
    """Import the package and look for the script's run, kept per thread; what is returned opens the sink."""
    from trackio import context_vars

    run = context_vars.current_run.get()
    return lambda: Trackio(run_dir, run)


class Trackio:
    """Rows, alerts, and the report as an artifact. Trackio writes nan and infinities as text, which it reads back.

    In the script's own run its count of steps stays what it is: our rows stand at its newest step, with the optimizer's
    own as ``steadygrad/step``, and wait for its first row.

    Args:
        run_dir: of the run; gives our own Trackio run its name.
        run: the script's run, which is left open; None: make one of ours in the project ``steadygrad``.
    """

    def __init__(self, run_dir: Path, run: Any) -> None:
        import trackio

        _say_nothing_here()
        self._ours = run is None
        self._levels = {"warning": trackio.AlertLevel.WARN, "alarm": trackio.AlertLevel.ERROR}
        self._else = trackio.AlertLevel.WARN
        # The thread is ours: what is current in it is not what is current in the script's.
        self._run = run if run is not None else trackio.init(PROJECT, name=run_dir.name, embed=False)

    def write(self, scalars: dict[str, float], step: int) -> None:
        if self._ours:
            self._run.log({**scalars, STEP: step}, step=step)
        elif self._run._next_step > 0:  # an explicit step beyond it would move the script's own count
            self._run.log({**scalars, STEP: step}, step=self._run._next_step - 1)

    def event(self, event: Event) -> None:
        level = self._levels.get(event.severity, self._else)
        self._run.alert(title=f"steadygrad: {event.name}", text=event.line, level=level, step=event.step)

    def artifact(self, path: Path) -> None:
        self._run.log_artifact(path, name=f"steadygrad-report-{self._run.name}", type="report")

    def close(self) -> None:
        if self._ours:
            self._run.finish()


def _say_nothing_here() -> None:
    """Trackio prints to standard output, which is the script's: not what it does in this thread."""
    threads.add(threading.get_ident())
    for name in PRINTING:
        module = sys.modules.get(name)
        if isinstance(module, ModuleType) and "print" not in vars(module):
            module.print = _print  # type: ignore[attr-defined]


threads: set[int] = set()


def _print(*words: Any, **more: Any) -> None:
    if threading.get_ident() not in threads:
        builtins.print(*words, **more)
