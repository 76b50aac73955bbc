"""What a callback tells its trainer: a few numbers for its logger and bar, and what happens as lines."""

from __future__ import annotations

from collections.abc import Callable

from steadygrad.records import Action, Finding, StepStats
from steadygrad.sinks.sink import event_of_action, event_of_finding

MOST = 1000  # lines in a run


class Telling:
    """An observer of the run.

    Args:
        say: puts a line where the trainer's user will see it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.numbers: dict[str, float] = {}  # of the newest step
        self._say, self._lines = say, 0
        self._run_dir = ""

    def started(self, run_dir: str) -> None:
        """Where the run is recorded is said with the first line that there is reason for."""
        self._run_dir = run_dir

    def step(self, stats: StepStats, skipped: int, incidents: int) -> None:
        if stats.optimizer == 0:
            self.numbers = {
                "steadygrad/grad_norm": stats.grad_norm,
                "steadygrad/skipped": float(skipped),
                "steadygrad/incidents": float(incidents),
            }

    def finding(self, finding: Finding) -> None:
        event = event_of_finding(finding)
        if event is not None:
            self._tell(event.line)

    def action(self, action: Action) -> None:
        self._tell(event_of_action(action).line)

    def note(self, text: str) -> None:
        self._tell(text)

    def _tell(self, text: str) -> None:
        self._lines += 1
        if self._lines <= MOST:
            where = f" (recorded in {self._run_dir})" if self._lines == 1 and self._run_dir else ""
            self._say(f"steadygrad: {text}{where}")
