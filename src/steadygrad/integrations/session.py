"""One watched run: calls the rooms in order, and switches itself off when they fail.

The session is the listener of the join points. It never lets an error of ours into the user's loop: the first
one disarms the session, with one warning, and the run goes on as if steadygrad were not there.
"""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guard.guard import Guard
from steadygrad.guard.policy import GuardExit, GuardStop
from steadygrad.guard.state import TrainingState, find_scalers, find_schedulers
from steadygrad.integrations.docket import LARGE
from steadygrad.integrations.guarding import new_guard, new_live_repair, new_together
from steadygrad.integrations.in_force import InForce, Prescribed
from steadygrad.integrations.judging import Judging
from steadygrad.integrations.live_repair import LiveRepair
from steadygrad.integrations.on_device import leave_to_device
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.ours import ours
from steadygrad.integrations.ranks.group import RankLost, RanksDiffer
from steadygrad.integrations.reasons import Reasons
from steadygrad.integrations.resumed import Resumed
from steadygrad.integrations.run_record import RunRecord
from steadygrad.probe.embeddings import embedding_listeners
from steadygrad.probe.ended import Unread
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.names import any_sharded, flat_params
from steadygrad.probe.probe import Probe
from steadygrad.probe.tiers import TIERS
from steadygrad.records import Action, RunSummary, StepStats
from steadygrad.rules.engine import RuleSet

if TYPE_CHECKING:
    from steadygrad.integrations.ranks.together import Together


class Session:
    """Everything that watches one run.

    Args:
        options: what the user set.
        script: name of what is run, for people.
        argv: its arguments.
        observer: is told what happens (the terminal).
        exit_on_stop: the guard's stop ends the script with exit code 86 instead of raising :class:`GuardStop`.
        run_dir: use this run directory (a launcher made it) instead of making one.
        door: through which the user came in, for people.
        process_group: the ranks of torch.distributed that decide alike; all of them if None.
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
        door: str = "steadygrad run",
        process_group: Any = None,
    ) -> None:
        self.options = options
        self.armed = True
        self.record = RunRecord(options, script=script, argv=argv, observer=observer, run_dir=run_dir)
        self.run_dir = self.record.run_dir
        self.live: LiveRepair | None = None
        self._exit_on_stop = exit_on_stop
        self._joinpoints = JoinPoints(self, f"{door}, run {self.run_dir.name}")
        self._probe = Probe(tier=TIERS[options.tier])
        self._rules = RuleSet()
        self._reasons = Reasons(options.locate)
        self._in_force = InForce()
        self._skipped_by_guard: set[int] = set()  # optimizers, in the step that is under way
        self._judging = Judging(self._rules, self._reasons, self.record, self._probe)
        self._put_back = False  # the run, when somebody asked between two steps
        self._steps = 0  # that are over, of the optimizer that has taken most
        self._prescribed = Prescribed(options.prescription, self._in_force, self.record)
        self._replay_length: Callable[[int], int] | None = None
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._guard: Guard | None = None
        self._process_group = process_group
        self._together: Together | None = None  # with other ranks
        self._open: dict[
            int, StepStats
        ] = {}  # optimizer index -> the step between before_step and after_step
        self._unread: Unread | None = None  # the step under way, if the device decides on it
        self._summary: RunSummary | None = None
        self.resumed: Resumed | None = None  # from a saved state, and not yet gone on
        self._repair_state: dict[str, Any] | None = None  # saved, for who will try remedies

    # ------------------------------------------------------------------ doors
    def install(self) -> None:
        """Watch every optimizer of this process, those that exist and those still to be built."""
        self._prescribed.put()
        self._joinpoints.install(all_optimizers=True)
        embedding_listeners.append(self.embedded)
        if self.record.observer is not None:
            self.record.observer.started(str(self.run_dir))

    def attach(self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        """Watch just these."""
        self._probe = self._judging.probe = Probe(models, tier=TIERS[self.options.tier])
        self._joinpoints.install(all_optimizers=False)
        embedding_listeners.append(self.embedded)
        for optimizer in optimizers:
            self._joinpoints.attach(optimizer)

    def replay(self, length: Callable[[int], int]) -> None:
        """Somebody will drive the trials of repairs with batches that he has kept. To be said before the first step.

        Args:
            length: steps of a trial, from the steps that the guard went back.
        """
        self._replay_length = length
        self._prepare_repair()

    @property
    def modes_on(self) -> bool:
        """Whether operations are being watched: what is ours has to be kept out of sight."""
        return self._reasons.modes_on

    @property
    def tick(self) -> int:
        """Steps of all optimizers so far, as the guard counts them; 0 without a guard."""
        return self._guard.tick if self._guard is not None else 0

    # ------------------------------------------------------------------ what the join points tell
    @ours(None)
    def optimizer_built(self, optimizer: Optimizer) -> None:
        """Nothing is known of it yet: its model may still change. It is looked at in its first step."""
        self._in_force.optimizer_built(optimizer)
        self._reasons.optimizer_built()

    @ours(None)
    def scheduler_built(self, scheduler: Any) -> None:
        if self._guard is not None:
            self._guard.state.add_scheduler(scheduler)

    @ours(None)
    def scaler_seen(self, scaler: Any) -> None:
        self._probe.saw_scaler(scaler)
        if self._guard is not None:
            self._guard.state.add_scaler(scaler)

    @ours(None)
    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        fresh = [o for o in self._joinpoints.optimizers() if o not in self._known]
        # FSDP has its modules hold gathered weights until the backward pass is over: the optimizer's are in none.
        if fresh and not any(any_sharded(flat_params(o)) for o in fresh):
            self._meet_optimizers()
        if self._guard is not None:
            self._guard.clear_gradients()
        self._reasons.before_backward(roots, values, self._steps, self._probe, self._rules)
        self._in_force.backward(roots, values)

    @ours(None)
    def backward(self, roots: Sequence[Tensor]) -> None:
        self._probe.saw_backward(roots)

    @ours(None)
    def embedded(self, embeddings: Tensor, other: Tensor | None) -> None:
        """A loss without labels is given these."""
        if self._joinpoints.here:
            self._probe.saw_embeddings(embeddings, other)

    @ours(None)
    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        self._probe.saw_clip(params, max_norm)

    @ours(None)
    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None:
        self.record.amp_skips += 1
        self._probe.saw_amp_skip(optimizer)
        if self._together is not None and optimizer in self._known:
            skip, put_back = self._together.overflow(optimizer, lambda: self._probe.leave_out(optimizer))
            self._put_back |= put_back
            if skip is not None:
                self.record.action(skip)

    @ours(True)
    def before_step(self, optimizer: Optimizer) -> bool:
        self._prescribed.check()
        if self.record.writer is None:
            self.record.begin()
        if optimizer not in self._known:
            self._meet_optimizers()
        if self.resumed is not None:
            self.resumed.before_first_step(self._guard)
            self.resumed = None
        self._reasons.before_step()
        index = self._probe.optimizer_index(optimizer)
        stale, self._put_back = self._judging.catch_up() or self._put_back, False
        if self._guard is not None:
            if stale and self._guard.stop is not None:
                self._raise_stop(self._guard.stop.reason)
            if not stale and self._alone:
                self._unread = leave_to_device(optimizer, self._probe, self._guard, self._rules)
                if self._unread is not None:
                    self._open[index] = self._unread.stats
                    return True
            self._guard.buffers.look()
        stats, agreed, norms = self._probe.before(optimizer), None, self._rules.history(index)
        if self._together is not None:
            stats, agreed, put_back = self._together.before(optimizer, stats)
            stale, norms = stale or put_back, self._together.history(index)
            if self._guard is not None and self._guard.stop is not None:
                self._raise_stop(self._guard.stop.reason)
        self._open[index] = stats
        if self._guard is not None:
            skip = self._guard.before(optimizer, stats, norms, stale=stale, agreed=agreed)
            if skip is not None:
                self._skip(skip)
                return False
        return self._in_force.before_step(optimizer)

    @ours(None)
    def step_raised(self, optimizer: Optimizer) -> None:
        self._in_force.undo_step()
        if self._guard is not None:
            self._guard.step_raised()
        self._unread = None
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
            self._reasons.watch_next_step(self._probe.roots, compiled=self._joinpoints.compiled)
        except Exception as error:  # noqa: BLE001 - whatever we did wrong, the user's run must go on
            self.disarm(error)

    @ours(None)
    def _after_step(self, optimizer: Optimizer, applied: bool) -> None:
        index = self._probe.optimizer_index(optimizer)
        stats = self._open.pop(index)
        self._prescribed.say()
        applied = self._in_force.after_step(optimizer, applied)
        if self._guard is not None:
            self._guard.undo_overrides()
            taken_back = self._guard.take_back(optimizer, stats) if applied else None
            if taken_back is not None:
                self._skip(taken_back)
                applied = False
        unread, self._unread = self._unread, None
        ended = self._probe.end(optimizer, stats, applied, unread)
        self._steps = max(self._steps, stats.step + 1)
        skipped = index in self._skipped_by_guard
        self._skipped_by_guard.discard(index)
        if self._trying and self.live is not None:
            stats = ended.complete()
            self._judging.write(stats)
            self._rules.observe(stats)
            self.live.step(optimizer, stats)
        else:
            self._judging.over(optimizer, ended, skipped)
        if self._guard is not None and self._guard.stop is not None:
            self._raise_stop(self._guard.stop.reason)

    # ------------------------------------------------------------------ parts of a step
    @property
    def _alone(self) -> bool:
        """Whether the guard alone has a say in the coming step, which is the user's own call and not compiled."""
        others = self._in_force or self.live is not None or self._together is not None
        looking = self.options.locate is not None or self.modes_on
        return self._joinpoints.inside and not others and not looking

    @property
    def _trying(self) -> bool:
        """Whether the step is one of a trial, which says nothing of the run."""
        return self.live is not None and self.live.running

    def _skip(self, action: Action) -> None:
        self._skipped_by_guard.add(action.optimizer)
        if not self._trying:
            self.record.action(action)

    @ours(None)
    def settle(self, *, trials: bool = False) -> None:
        """Judge the steps that wait, so that whoever asks is told of all that happened; end ``trials`` of remedies."""
        self._put_back |= self._judging.settle()
        if trials and self.live is not None:
            self.live.settle()

    def _meet_optimizers(self) -> None:
        """A new optimizer takes its first step: a run begins, or (k-fold, a second phase) begins anew.

        Whatever we hold of models that the script has let go is let go as well, before we look around.
        """
        self._judging.settle()
        again = self._guard is not None or bool(self._known)
        if again:
            self._probe.forget_models()
            if self.live is not None:
                self.live.abandon()
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
        self._judging.may_wait = sum(prod(info.shape) for info in self._probe.params) < LARGE
        if self._together is None:
            self._together = self._judging.together = new_together(
                self._process_group, self.options, self._probe, self._rules, self.record
            )
        if self.options.guard != "on":
            return
        state = TrainingState(self._probe.roots, optimizers, find_schedulers(optimizers), find_scalers())
        if self._guard is not None:
            self._guard.guard_state(state)
            return
        self._guard = self._judging.guard = new_guard(
            state, self._probe, self._rules, self.record, self._together
        )
        self._prepare_repair()

    def resume_repair(self, state: dict[str, Any]) -> None:
        """What was repaired before the run was resumed; remedies stay in force where they are tried now as well."""
        self._repair_state = state
        self._prepare_repair()

    def _prepare_repair(self) -> None:
        """Remedies are tried where it was asked for, and where the guard acts."""
        asked = self._replay_length is not None or self.options.repair == "live"
        if self._guard is not None and self.live is None and asked:
            self.live = self._judging.live = new_live_repair(
                self._guard, self._in_force, self._rules, self.record, self._replay_length
            )
        if self.live is not None and self._repair_state is not None:
            self.live.load_state_dict(self._repair_state)
            self._repair_state = None

    def _raise_stop(self, reason: str) -> None:
        """Raised at this step and, if the script swallows it, at every step after."""
        text = f"steadygrad stopped the run: {reason}. The last good state is in {self.run_dir}/snapshots."
        raise GuardExit(text) if self._exit_on_stop else GuardStop(text)

    # ------------------------------------------------------------------ the end
    def _stop_listening(self) -> None:
        """Take every patch away. Can be called again."""
        self._joinpoints.remove()
        if self.embedded in embedding_listeners:
            embedding_listeners.remove(self.embedded)

    def disarm(self, error: BaseException) -> None:
        """Our own failure: give everything back, warn once, and be gone."""
        self.armed = False
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "unknown"
        lost = " and without its prescription" if self._prescribed.active else ""
        try:
            self._in_force.undo_step()
            if self._guard is not None:
                self._guard.undo_overrides()
                self._guard.clear_gradients()
            if self.live is not None:
                self.live.abandon()
            self._in_force.clear()
        except Exception:  # noqa: BLE001 - already on the way out
            pass
        try:
            self._stop_listening()
            self._reasons.stop_watching()
        except Exception:  # noqa: BLE001 - already on the way out
            pass
        if self._together is not None:
            self._together.leave("has switched itself off")
        if isinstance(error, (RankLost, RanksDiffer)):
            self.record.note(f"steadygrad has switched itself off; the run goes on without it{lost}: {error}")
            return
        self.record.note(
            f"steadygrad had an error of its own and has switched itself off; the run goes on without it"
            f"{lost} ({type(error).__name__}: {error}, {where})"
        )

    def close(self, error: BaseException | None = None) -> RunSummary:
        """Remove every hook, finish the trace, and say what the run came to. Can be called again."""
        if self._summary is not None:
            return self._summary
        self.settle()
        self._stop_listening()
        if self._together is not None:
            self._together.leave("has ended its watch")
        self._probe.close()
        if self.live is not None and self.live.running:
            self.record.note("the run ended in the middle of a trial of remedies")
            self.live.settle()
        if not self._exit_on_stop:  # a script's last words, and what it does at exit, still meet the plan
            self._in_force.clear()
        stopped = self._guard is not None and self._guard.stop is not None
        self._reasons.stop_watching()
        of_guard = self._guard.notes if self._guard is not None else ()
        lost = [
            f"{name} has taken an optimizer over and watches it alone" for name in self._joinpoints.taken_by
        ]
        for text in (*lost, *of_guard, *self._reasons.notes, *self._probe.notes):
            self.record.note(text)
        verdict, causes = self._reasons.conclude(
            self.record.writer,
            self.record.steps,
            acted=any(not a.prescribed for a in self.record.actions),
            stopped=stopped,
        )
        self._summary = self.record.summary(
            stopped_by_guard=stopped,
            findings=tuple(self._reasons.findings),
            causes=tuple(causes),
            verdict=verdict,
            first_nonfinite=self._reasons.located,
            forecast=self._reasons.forecast,
        )
        if self._guard is not None:
            self._guard.close()
        self.record.finish(self._summary, error)
        return self._summary
