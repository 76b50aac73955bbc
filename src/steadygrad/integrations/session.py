"""One watched run: calls the rooms in order, and switches itself off when they fail.

The session is the listener of the join points. It never lets an error of ours into the user's loop: the first
one disarms the session, with one warning, and the run goes on as if steadygrad were not there.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from steadygrad import __version__
from steadygrad.guard.durable import DurableWriter
from steadygrad.guard.guard import Guard
from steadygrad.guard.policy import GuardExit, GuardStop, Policy
from steadygrad.guard.state import TrainingState, find_scalers, find_schedulers
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.reasons import Reasons
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.probe import Probe
from steadygrad.records import Action, Finding, RunSummary, StepStats
from steadygrad.rules.engine import RuleSet
from steadygrad.trace.rundir import create_run_dir, trace_path
from steadygrad.trace.writer import TraceWriter

T = TypeVar("T")


def _ours(default: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An error of ours disarms the session; the loop gets ``default`` and goes on. A stop passes through."""

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def safe(self: Session, *args: Any, **kwargs: Any) -> T:
            if not self.armed:
                return default
            try:
                with torch.no_grad(), _disable_current_modes() if self._reasons.modes_on else nullcontext():
                    return method(self, *args, **kwargs)
            except (GuardStop, GuardExit):
                raise
            except Exception as error:  # noqa: BLE001 - whatever we did wrong, the user's run must go on
                self.disarm(error)
                return default

        return safe

    return decorate


class Session:
    """Everything that watches one run.

    Args:
        options: what the user set.
        script: name of what is run, for people.
        argv: its arguments.
        observer: is told what happens (the terminal).
        exit_on_stop: the guard's stop ends the script with exit code 86 instead of raising :class:`GuardStop`.
        run_dir: use this run directory (a launcher made it) instead of making one.
    """

    def __init__(
        self,
        options: Options,
        *,
        script: str,
        argv: Sequence[str] = (),
        observer: Observer | None = None,
        exit_on_stop: bool = False,
        run_dir: Path | None = None,
    ) -> None:
        self.options = options
        self.observer = observer
        self.armed = True
        self._exit_on_stop = exit_on_stop
        self._own_dir = run_dir is None
        self.run_dir = run_dir or create_run_dir(
            Path(options.runs), options.name, default=Path(script).stem or "run"
        )
        self._script, self._argv = script, list(argv)
        self._started = time.time()
        self._joinpoints = JoinPoints(self)
        self._probe = Probe()
        self._rules = RuleSet()
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._guard: Guard | None = None
        self._writer: TraceWriter | None = None
        self._open: dict[
            int, StepStats
        ] = {}  # optimizer index -> the step between before_step and after_step
        self._declared = 0
        self._summary: RunSummary | None = None
        self._losses: list[float] = []
        self._loss_first: float | None = None
        self._loss_best: float | None = None
        self._disk_failed = False
        self._reasons = Reasons(options.locate)
        self._actions: list[Action] = []
        self._notes: list[str] = []
        self._steps = self._skipped = self._amp_skips = self._incidents = 0

    # ------------------------------------------------------------------ doors
    def install(self) -> None:
        """Watch every optimizer of this process, those that exist and those still to be built."""
        self._joinpoints.install(all_optimizers=True)
        if self.observer is not None:
            self.observer.started(str(self.run_dir))

    def attach(self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        """Watch just these."""
        self._probe = Probe(models)
        self._joinpoints.install(all_optimizers=False)
        for optimizer in optimizers:
            self._joinpoints.attach(optimizer)

    # ------------------------------------------------------------------ what the join points tell
    @_ours(None)
    def optimizer_built(self, optimizer: Optimizer) -> None:
        """Nothing is known of it yet: its model may still change. It is looked at in its first step."""
        self._reasons.optimizer_built()

    @_ours(None)
    def scheduler_built(self, scheduler: Any) -> None:
        if self._guard is not None:
            self._guard.state.add_scheduler(scheduler)

    @_ours(None)
    def scaler_seen(self, scaler: Any) -> None:
        self._probe.saw_scaler(scaler)
        if self._guard is not None:
            self._guard.state.add_scaler(scaler)

    @_ours(None)
    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if any(o not in self._known for o in self._joinpoints.optimizers()):
            self._meet_optimizers()
        self._reasons.before_backward(roots, values, self._steps, self._probe, self._rules)

    @_ours(None)
    def backward(self, roots: Sequence[Tensor]) -> None:
        self._probe.saw_backward(roots)

    @_ours(None)
    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        self._probe.saw_clip(params, max_norm)

    @_ours(None)
    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None:
        self._amp_skips += 1
        self._probe.saw_amp_skip(optimizer)

    @_ours(True)
    def before_step(self, optimizer: Optimizer) -> bool:
        if self._writer is None:
            self._begin()
        if optimizer not in self._known:
            self._meet_optimizers()
        self._reasons.before_step()
        index = self._probe.optimizer_index(optimizer)
        stats = self._probe.before(optimizer)
        self._open[index] = stats
        if self._guard is None:
            return True
        action = self._guard.before(optimizer, stats, self._rules.history(index))
        if action is None:
            return True
        self._act(action)
        return False

    @_ours(None)
    def step_raised(self, optimizer: Optimizer) -> None:
        if self._guard is not None:
            self._guard.undo_overrides()
        self._probe.step_raised()
        self._open.pop(self._probe.optimizer_index(optimizer), None)

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        try:
            self._after_step(optimizer, applied)
        finally:
            self._watch_next_step()

    def _watch_next_step(self) -> None:
        """Apart from all else: a mode cannot be entered or left while modes are switched off."""
        if not self.armed:
            return
        try:
            self._reasons.watch_next_step(self._probe.roots)
        except Exception as error:  # noqa: BLE001 - whatever we did wrong, the user's run must go on
            self.disarm(error)

    @_ours(None)
    def _after_step(self, optimizer: Optimizer, applied: bool) -> None:
        index = self._probe.optimizer_index(optimizer)
        stats = self._open.pop(index)
        history = self._rules.history(index)
        if self._guard is not None:
            self._guard.undo_overrides()
            taken_back = self._guard.take_back(optimizer, stats) if applied else None
            if taken_back is not None:
                self._act(taken_back)
                applied = False
        stats = self._probe.after(optimizer, stats, applied)
        findings = self._rules.observe(stats)
        for finding in findings:
            self._find(finding)
        self._reasons.step(optimizer, stats, findings, self._rules)
        if self._guard is not None:
            for action in self._guard.after(optimizer, stats, findings, history):
                self._act(action)
        self._count(stats)
        self._record(stats)
        if self.observer is not None:
            self.observer.step(stats, self._skipped, self._incidents)
        if self._guard is not None and self._guard.stop is not None:
            self._raise_stop(self._guard.stop.reason)

    # ------------------------------------------------------------------ parts of a step
    def _begin(self) -> None:
        """The first step: the trace file. Processes of a launcher that have no rank are told apart by their id."""
        rank = os.environ.get("RANK", "")
        alone = self._own_dir or rank.isdigit()
        path = trace_path(self.run_dir, int(rank) if rank.isdigit() else 0, None if alone else os.getpid())
        self._writer = TraceWriter(path, self._meta(), on_failure=self._trace_failed)

    def _meet_optimizers(self) -> None:
        """A new optimizer takes its first step: a run begins, or (k-fold, a second phase) begins anew.

        Whatever we hold of models that the script has let go is let go as well, before we look around.
        """
        again = self._guard is not None or bool(self._known)
        if again:
            self._probe.forget_models()
            if self._guard is not None:
                self._guard.guard_state(TrainingState())
            gc.collect()
        optimizers = self._joinpoints.optimizers()
        for optimizer in optimizers:
            self._known.add(optimizer)
        self._probe.look_around(optimizers)
        for optimizer in optimizers:
            self._probe.optimizer_index(optimizer)
        self._reasons.models_found(self._probe.roots)
        if self.options.guard != "on":
            return
        state = TrainingState(self._probe.roots, optimizers, find_schedulers(optimizers), find_scalers())
        if self._guard is not None:
            self._guard.guard_state(state)
            return
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        policy = Policy(distributed=distributed and torch.distributed.get_world_size() > 1)
        self._guard = Guard(
            state,
            policy,
            find_poison=self._probe.nonfinite_state,
            remember=self._rules.state_dict,
            recall=self._rules.load_state_dict,
            durable=None
            if policy.distributed
            else DurableWriter(self.run_dir / "snapshots", on_failure=self._cannot_write, max_share=0.01),
        )

    def _meta(self) -> dict[str, Any]:
        return {
            "script": Path(self._script).name,
            "argv": self._argv,
            "started": self._started,
            "guard": self.options.guard,
            "steadygrad": __version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "rank": int(os.environ.get("RANK", 0)),
            "world_size": int(os.environ.get("WORLD_SIZE", 1)),
        }

    def _count(self, stats: StepStats) -> None:
        self._steps = max(self._steps, stats.step + 1)
        self._skipped += not stats.applied
        if stats.loss is not None and stats.optimizer == 0:
            self._losses = [*self._losses[-19:], stats.loss]
            if self._loss_first is None:
                self._loss_first = stats.loss
            if stats.loss == stats.loss and (self._loss_best is None or stats.loss < self._loss_best):
                self._loss_best = stats.loss

    def _record(self, stats: StepStats) -> None:
        """Append one step to the trace."""
        writer = self._writer
        assert writer is not None
        params = self._probe.params
        if len(params) != self._declared:
            writer.declare(params[self._declared :])
            self._declared = len(params)
        writer.step(stats)
        if self._guard is not None and self._guard.policy.clip is not None:
            writer.scalars(stats.optimizer, stats.step, {"guard_clip": self._guard.policy.clip})

    def _find(self, finding: Finding) -> None:
        self._incidents += finding.severity == "alarm"
        if self._writer is not None:
            self._writer.finding(finding)
        if self.observer is not None:
            self.observer.finding(finding)

    def _act(self, action: Action) -> None:
        self._actions.append(action)
        if self._writer is not None:
            self._writer.action(action)
        if self.observer is not None:
            self.observer.action(action)

    def note(self, text: str) -> None:
        """Something that the user should know about the watching itself."""
        if text in self._notes:
            return
        self._notes.append(text)
        if self.observer is not None:
            self.observer.note(text)

    def _trace_failed(self, error: BaseException) -> None:
        self._cannot_write(f"the trace can no longer be written ({error}): the run goes on without it")

    def _cannot_write(self, text: str) -> None:
        """One warning, whatever else the same full disk spoils."""
        if not self._disk_failed:
            self._disk_failed = True
            self.note(text)

    def _raise_stop(self, reason: str) -> None:
        """Raised at this step and, if the script swallows it, at every step after."""
        text = f"steadygrad stopped the run: {reason}. The last good state is in {self.run_dir}/snapshots."
        raise GuardExit(text) if self._exit_on_stop else GuardStop(text)

    # ------------------------------------------------------------------ the end
    def disarm(self, error: BaseException) -> None:
        """Our own failure: give everything back, warn once, and be gone."""
        self.armed = False
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "unknown"
        try:
            if self._guard is not None:
                self._guard.undo_overrides()
            self._joinpoints.remove()
            self._reasons.stop_watching()
        except Exception:  # noqa: BLE001 - already on the way out
            pass
        self.note(
            f"steadygrad had an error of its own and has switched itself off; the run goes on without it "
            f"({type(error).__name__}: {error}, {where})"
        )

    def close(self, error: BaseException | None = None) -> RunSummary:
        """Remove every hook, finish the trace, and say what the run came to. Can be called again."""
        if self._summary is not None:
            return self._summary
        self._joinpoints.remove()
        self._probe.close()
        stopped = self._guard is not None and self._guard.stop is not None
        self._reasons.stop_watching()
        for text in (*self._reasons.notes, *self._probe.notes):
            self.note(text)
        verdict, causes = self._reasons.conclude(
            self._writer, self._steps, acted=bool(self._actions), stopped=stopped
        )
        self._summary = RunSummary(
            run_dir=str(self.run_dir) if self._steps else None,
            steps=self._steps,
            seconds=time.time() - self._started,
            loss_first=self._loss_first,
            loss_last=median(self._losses) if self._losses else None,
            loss_best=self._loss_best,
            skipped=self._skipped,
            amp_skips=self._amp_skips,
            stopped_by_guard=stopped,
            findings=tuple(self._reasons.findings),
            actions=tuple(self._actions),
            causes=tuple(causes),
            notes=tuple(self._notes),
            verdict=verdict,
            first_nonfinite=self._reasons.located,
            forecast=self._reasons.forecast,
        )
        self._finish(self._summary, error)
        return self._summary

    def _finish(self, summary: RunSummary, error: BaseException | None) -> None:
        """Write the end of the trace; a run without a step leaves nothing behind."""
        if self._guard is not None:
            self._guard.close()
        if self._writer is None:
            if self._own_dir and self.run_dir.is_dir() and not any(self.run_dir.iterdir()):
                self.run_dir.rmdir()
            return
        self._writer.causes(max(summary.steps - 1, 0), summary.causes)
        self._writer.meta_update(
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
        self._writer.close()
