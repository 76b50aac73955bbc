"""What of a watched run goes on record: its trace, what the observer is told, the counts and the summary at its end."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from steadygrad import __version__
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.ranks.folder import new_run_dir, rank_and_world
from steadygrad.records import Action, Finding, ParamInfo, RunSummary, StepStats
from steadygrad.sinks.fan import Sinks
from steadygrad.trace.rundir import trace_path
from steadygrad.trace.writer import TraceWriter

_COUNTS = ("steps", "skipped", "amp_skips", "_incidents", "_loss_first", "_loss_best")


class RunRecord:
    """The record of one run. A disk that cannot be written costs the trace, with one note, and nothing else.

    Args:
        options: what the user set.
        script: name of what is run, for people.
        argv: its arguments.
        observer: is told what happens (the terminal).
        run_dir: use this run directory (a launcher made it) instead of making one.
    """

    def __init__(
        self,
        options: Options,
        *,
        script: str,
        argv: Sequence[str],
        observer: Observer | None,
        run_dir: Path | None,
    ) -> None:
        self.observer = observer
        shared = run_dir is not None
        if run_dir is None:
            run_dir, shared = new_run_dir(Path(options.runs), options.name, Path(script).stem or "run")
        self.run_dir = run_dir
        self.sinks = Sinks(options.sinks, self.run_dir, self.note)
        self.writer: TraceWriter | None = None
        self.actions: list[Action] = []
        self.notes: list[str] = []
        self.steps = self.skipped = self.amp_skips = 0
        self._own_dir = not shared
        self._options, self._script, self._argv = options, script, list(argv)
        self._started = time.time()
        self._incidents = 0
        self._declared = 0
        self._losses: deque[float] = deque(maxlen=20)
        self._loss_first: float | None = None
        self._loss_best: float | None = None
        self._disk_failed = False
        self._origin: dict[str, Any] | None = None  # the run and the step that this one was resumed from

    # ------------------------------------------------------------------ as the run goes
    def begin(self) -> None:
        """The first step: the trace file. Processes of a launcher that have no rank are told apart by their id."""
        rank, _ = rank_and_world()
        alone = self._own_dir or rank is not None
        path = trace_path(self.run_dir, rank or 0, None if alone else os.getpid())
        self.writer = TraceWriter(path, self._meta(), on_failure=self._trace_failed)
        self.sinks.begin()

    def _meta(self) -> dict[str, Any]:
        rank, world_size = rank_and_world()
        return {
            "script": Path(self._script).name,
            "argv": self._argv,
            "started": self._started,
            "guard": self._options.guard,
            "steadygrad": __version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "rank": rank or 0,
            "world_size": world_size,
            **({"resumed_from": self._origin} if self._origin is not None else {}),
        }

    def step(self, stats: StepStats, params: Sequence[ParamInfo], scalars: Mapping[str, float]) -> None:
        """Count one step, and append it to the trace.

        Args:
            stats: of the step.
            params: all that are known so far.
            scalars: further numbers of this step.
        """
        self.count(stats)
        self.write(stats, params, scalars)
        self.sinks.step(stats, self.skipped, self._incidents)
        if self.observer is not None:
            self.observer.step(stats, self.skipped, self._incidents)

    def count(self, stats: StepStats) -> None:
        self.steps = max(self.steps, stats.step + 1)
        self.skipped += not stats.applied
        if stats.loss is not None and stats.optimizer == 0:
            self._losses.append(stats.loss)
            if self._loss_first is None:
                self._loss_first = stats.loss
            if stats.loss == stats.loss and (self._loss_best is None or stats.loss < self._loss_best):
                self._loss_best = stats.loss

    def write(self, stats: StepStats, params: Sequence[ParamInfo], scalars: Mapping[str, float]) -> None:
        writer = self.writer
        assert writer is not None
        if len(params) != self._declared:
            writer.declare(params[self._declared :])
            self._declared = len(params)
        writer.step(stats)
        if scalars:
            writer.scalars(stats.optimizer, stats.step, dict(scalars))

    def finding(self, finding: Finding) -> None:
        self._incidents += finding.severity == "alarm"
        if self.writer is not None:
            self.writer.finding(finding)
        self.sinks.finding(finding)
        if self.observer is not None:
            self.observer.finding(finding)

    def action(self, action: Action) -> None:
        self.actions.append(action)
        if self.writer is not None:
            self.writer.action(action)
        self.sinks.action(action)
        if self.observer is not None:
            self.observer.action(action)

    def note(self, text: str) -> None:
        """Something that the user should know about the watching itself; said once."""
        if text in self.notes:
            return
        self.notes.append(text)
        if self.observer is not None:
            self.observer.note(text)

    def cannot_write(self, text: str) -> None:
        """One warning, whatever else the same full disk spoils."""
        if not self._disk_failed:
            self._disk_failed = True
            self.note(text)

    # ------------------------------------------------------------------ a run that is resumed
    def state_dict(self) -> dict[str, Any]:
        """The counts and what was done, as plain data."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "losses": list(self._losses),
            "actions": [action.to_json() for action in self.actions],
        }

    def load_state_dict(self, state: dict[str, Any], origin: dict[str, Any]) -> None:
        """Put it back. ``origin``: the run that it is of, named in the trace, which holds the later steps alone."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self._losses = deque(state["losses"], maxlen=self._losses.maxlen)
        self.actions = [Action(**action) for action in state["actions"]]
        self._origin = origin
        self.note(
            f"resumed at step {origin['step']:,} of {origin['run_dir']}, whose trace holds the steps before"
        )

    def _trace_failed(self, error: BaseException) -> None:
        self.cannot_write(f"the trace can no longer be written ({error}): the run goes on without it")

    # ------------------------------------------------------------------ the end
    def summary(self, **more: Any) -> RunSummary:
        """What the run came to. ``more``: what others know of it."""
        self.sinks.tell()
        return RunSummary(
            run_dir=str(self.run_dir) if self.steps else None,
            steps=self.steps,
            seconds=time.time() - self._started,
            loss_first=self._loss_first,
            loss_last=median(self._losses) if self._losses else None,
            loss_best=self._loss_best,
            skipped=self.skipped,
            amp_skips=self.amp_skips,
            actions=tuple(self.actions),
            notes=tuple(self.notes),
            **more,
        )

    def finish(self, summary: RunSummary, error: BaseException | None) -> None:
        """Write the end of the trace; a run without a step leaves nothing behind."""
        if self.writer is None:
            if self._own_dir and self.run_dir.is_dir() and not any(self.run_dir.iterdir()):
                self.run_dir.rmdir()
            return
        self.writer.causes(max(summary.steps - 1, 0), summary.causes)
        self.writer.meta_update(
            {
                "steps": summary.steps,
                "seconds": summary.seconds,
                "loss_first": summary.loss_first,
                "loss_last": summary.loss_last,
                "loss_best": summary.loss_best,
                "skipped": summary.skipped,
                "amp_skips": summary.amp_skips,
                "stopped_by_guard": summary.stopped_by_guard,
                "notes": list(summary.notes),
                "error": type(error).__name__ if error is not None else None,
            }
        )
        self.writer.close()
        self.sinks.close()
