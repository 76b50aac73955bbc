"""The guard: asks the policy, and carries out what it says on the live run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from steadygrad.guard.buffers import BufferKeeper, StepKeeper
from steadygrad.guard.durable import DurableWriter
from steadygrad.guard.gradients import scale_gradients_, zero_gradients_
from steadygrad.guard.policy import Norms, Policy, Rollback, StepDecision, Stop
from steadygrad.guard.ring import SMALL, SnapshotRing
from steadygrad.guard.schedule import ScheduleKeeper
from steadygrad.guard.state import TrainingState
from steadygrad.guard.verdict import Verdict, takes_a_verdict
from steadygrad.probe.host import near
from steadygrad.records import Action, Finding, StepStats

AT_THE_BOUND = StepDecision(
    False, "the gradient norm is the largest that is applied, up to a rounding", "G103"
)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the ranks of a training have agreed on before a step: the same on all of them."""

    poisoned: Sequence[str] = ()  # buffers that have become NaN, as ``BufferKeeper.poisoned`` has them
    whose: str = ""  # rank that a gradient which is not finite came from


STALE = StepDecision(False, "its gradient is that of weights which have just been taken back")
POISON = ("P100", "O100")  # codes of the rules for non-finite parameters and optimizer state


class Guard:
    """Skips, clips, rolls back and backs off, as :class:`~steadygrad.guard.policy.Policy` decides.

    ``tick`` counts the steps of all optimizers, skipped ones too; snapshots are named by it.

    Args:
        state: the live run: modules, optimizers, schedulers, scalers.
        policy: decides, and holds what is in force.
        find_poison: names of non-finite parameters, buffers and optimizer state. A full look: asked for when
            an incident begins, never in a healthy step.
        remember: the state of the detectors, kept beside each snapshot.
        recall: puts such a state back after a rollback.
        durable: writes good snapshots to disk, or None.
        ranks: several decide alike: whoever asks them calls `keep` for each snapshot, the first one too, when no
            sharding library has the weights of a pass gathered.

    Attributes:
        common: ticks of the good snapshots that all ranks of a training hold: those alone are gone back to. None where
            this process trains alone. Then its ranks are to give the same arguments to `before` and `judge`.
    """

    def __init__(
        self,
        state: TrainingState,
        policy: Policy,
        *,
        find_poison: Callable[[], list[str]],
        remember: Callable[[], Any],
        recall: Callable[[Any], None],
        durable: DurableWriter | None = None,
        ranks: bool = False,
    ) -> None:
        self.policy = policy
        self.find_poison = find_poison
        self.remember = remember
        self.recall = recall
        self.durable = durable
        self.tick = 0
        self.stop: Stop | None = None
        self.common: frozenset[int] | None = frozenset() if ranks else None
        self._steps: dict[int, int] = {}  # optimizer index -> applied steps
        self._verdict: Verdict | None = None  # of the newest step, as long as the host does not know it
        self._keep_gradients: WeakSet[Optimizer] = WeakSet()  # until the next backward pass, or longer
        self._rates: list[tuple[dict[str, Any], Any]] = []  # groups whose lr is changed for one step
        self.guard_state(state)

    def guard_state(self, state: TrainingState) -> None:
        """Guard this state from now on: the run has got another model or optimizer. Snapshots begin anew."""
        self.state = state
        self.ring = SnapshotRing(state)
        self.buffers = BufferKeeper(state.modules)
        self.schedules = ScheduleKeeper()
        self._memories: dict[int, Any] = {}  # tick of a snapshot -> what the detectors knew
        self._undo = {id(o): StepKeeper(o) for o in state.optimizers if isinstance(o, LBFGS)}
        if self.common is None:
            self._take_snapshot()

    # ------------------------------------------------------------------ before the step
    def before(
        self,
        optimizer: Optimizer,
        stats: StepStats,
        norms: Norms,
        *,
        stale: bool = False,
        agreed: Agreed | None = None,
    ) -> Action | None:
        """Decide on the coming step; a returned ``skip`` means that it must not be taken.

        Args:
            optimizer: about to step.
            stats: of its gradients.
            norms: of its healthy steps so far.
            stale: the run was put back to another state after these gradients were made.
            agreed: with the other ranks; None: this process looks for itself.
        """
        steps = self._steps.get(stats.optimizer, 0)
        self.schedules.before_step(optimizer, self.state.schedulers, steps)
        poisoned = self.buffers.poisoned() if agreed is None else agreed.poisoned
        decision = STALE if stale else self.policy.before(stats, norms, self.tick, poisoned)
        if not decision.apply:
            self.schedules.skipped(optimizer, self.state.schedulers, steps)
            whose = f" ({agreed.whose})" if agreed is not None and agreed.whose and not stale else ""
            return Action(stats.step, "skip", decision.reason + whose, decision.code, stats.optimizer)
        self._put_in_force(optimizer, stats)
        if id(optimizer) in self._undo:
            self._undo[id(optimizer)].keep()
        return None

    def _put_in_force(self, optimizer: Optimizer, stats: StepStats) -> None:
        clip = self.policy.clip
        if clip is not None and stats.clipped_grad_norm > clip:
            scale_gradients_(optimizer, clip / stats.clipped_grad_norm)
        factor = self.policy.lr_scale(self.tick)
        if factor != 1.0:
            for group in optimizer.param_groups:
                self._rates.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor

    def undo_overrides(self) -> None:
        """Give the learning rates back to the user. Called after every step, also one that raised."""
        for group, lr in self._rates:
            group["lr"] = lr
        self._rates.clear()
        if self._verdict is not None:
            self._verdict.take_back()

    # ------------------------------------------------------------------ decided on a device
    def leaves_to_device(self, optimizer: Optimizer, index: int) -> bool:
        """Whether the coming step can be decided on by its device, and come to the same in every respect.

        Not where a rollback could follow from it, or a snapshot is due after it; nor in a loop that keeps gradients
        over a step, in which the device would have to go through all of them to clear those of a skipped one.
        """
        grads = (p.grad for group in optimizer.param_groups for p in group["params"])
        grad = next((grad for grad in grads if grad is not None), None)
        return (
            grad is not None
            and not near(grad)
            and self.policy.at_rest(index)
            and not self.ring.will_be_due(self.tick + 1)
            and optimizer not in self._keep_gradients
            and takes_a_verdict(optimizer)
            and self.schedules.light(optimizer, self.state.schedulers)
            and self.buffers.all_on(grad.device)
        )

    def before_unread(
        self, optimizer: Optimizer, index: int, gradient_norms: Sequence[Tensor], norms: Norms
    ) -> Verdict:
        """As :meth:`before`, by the device: the step is called in any case, and does nothing where it is skipped.

        Args:
            optimizer: about to step, which :meth:`leaves_to_device`.
            index: of the optimizer.
            gradient_norms: one for each gradient, 0-D on the device.
            norms: of its healthy steps so far.
        """
        steps = self._steps.get(index, 0)
        self.schedules.before_step(optimizer, self.state.schedulers, steps)
        self.schedules.skipped(optimizer, self.state.schedulers, steps)  # for the case that it is
        self._verdict = Verdict(optimizer, gradient_norms, self.policy.bound(norms), self.buffers)
        self._verdict.lend()
        return self._verdict

    def step_raised(self) -> None:
        """The user's step raised: nothing is left of what was decided on it."""
        self.undo_overrides()
        if self._verdict is not None:
            self.schedules.taken(self._verdict.optimizer)
            self._verdict = None

    def clear_gradients(self) -> None:
        """Gradients are about to be added up: those of a skipped step must not be among them."""
        if self._verdict is not None and self._verdict.clear():
            self._keep_gradients.add(self._verdict.optimizer)

    def learn(self, stats: StepStats, norms: Norms, became_nan: Sequence[float]) -> Action | None:
        """The host knows what the device has decided. The action, if the step was skipped.

        Args:
            stats: of the step, with ``applied`` as it was decided.
            norms: of the optimizer's healthy steps before.
            became_nan: what became of the verdict's flags of the buffers.
        """
        verdict, self._verdict = self._verdict, None
        assert verdict is not None
        if stats.applied:
            self.schedules.taken(verdict.optimizer)
            return None
        verdict.clear()
        self._steps[stats.optimizer] -= 1
        why = self.policy.before(stats, norms, self.tick - 1, self.buffers.names_of(became_nan))
        why = AT_THE_BOUND if why.apply else why
        return Action(stats.step, "skip", why.reason, why.code, stats.optimizer)

    # ------------------------------------------------------------------ after the step
    def take_back(self, optimizer: Optimizer, stats: StepStats) -> Action | None:
        """Undo a step that looked usable before it and went wrong inside: LBFGS makes further gradients there."""
        keeper = self._undo.get(id(optimizer))
        if keeper is None or keeper.is_finite():
            return None
        keeper.restore()
        reason = "the step itself made the state non-finite, and was taken back"
        return Action(stats.step, "skip", reason, "G100", stats.optimizer)

    def step_over(self, optimizer: Optimizer, index: int, *, skipped: bool) -> int:
        """A step of the optimizer with this index is over: leave no trace of a skipped one. Returns its tick."""
        if skipped:
            self.buffers.restore()
            zero_gradients_(optimizer)
        else:
            self._steps[index] = self._steps.get(index, 0) + 1
            if self._verdict is not None:
                self._verdict.step_over(self.buffers)
            else:
                self.buffers.keep()
        self.tick += 1
        return self.tick - 1

    @property
    def busy(self) -> bool:
        """Whether the next judgement may change something: then it should not wait."""
        policy = self.policy
        watching = policy.incident is not None or policy.check is not None or self.common is not None
        return watching or self.ring.will_be_due(self.tick)

    def judge(
        self,
        stats: StepStats,
        findings: Sequence[Finding],
        norms: Norms,
        tick: int,
        *,
        skipped: bool = False,
        poisoned: list[str] | None = None,
    ) -> list[Action]:
        """Keep snapshots, and carry out a rollback or a stop. To be called for every step, in order.

        Args:
            stats: of a step that is over; later ones may be over as well.
            findings: what the rules say of it.
            norms: of the healthy steps up to this one.
            tick: of this step.
            skipped: the step was not taken, and that was the guard's own doing.
            poisoned: what `poison` has found, if it has been asked already.
        """
        if poisoned is None:
            poisoned = self.poison(stats, findings, skipped=skipped)
        if not skipped and not stats.applied:
            # Left out by a remedy, as the plan wants it: no reason for the guard to act.
            stats = replace(stats, applied=True)
        move = self.policy.after(stats, findings, norms, tick, poisoned)
        if isinstance(move, Rollback):
            return self._roll_back(move, stats)
        if isinstance(move, Stop):
            return self._end(move, stats)
        if stats.applied:
            self._keep(findings, tick + 1)
        return []

    def poison(self, stats: StepStats, findings: Sequence[Finding], *, skipped: bool) -> list[str]:
        """Names of non-finite state, where this step is a reason to look for it."""
        first_skip = skipped and self.policy.skips_in_a_row.get(stats.optimizer, 0) == 0
        if not first_skip and not any(f.code in POISON for f in findings):
            return []
        with self.buffers.as_kept():
            return self.find_poison()

    def keep(self) -> None:
        """Take a snapshot if one is due. For ranks: a step is judged when the next has begun, which is too late."""
        if self.policy.incident is None and self.ring.due(self.tick):
            self._take_snapshot()

    def moved(self, tick: int) -> None:
        """Somebody has put the run into the state that it had at this tick."""
        self.tick = tick
        self.buffers.keep()
        self.schedules.forget()

    def _keep(self, findings: Sequence[Finding], tick: int) -> None:
        # As was known before the step: a step that its device has decided on has gone by when it is judged.
        due = self.ring.will_be_due(tick)
        if any(f.severity != "info" for f in findings):
            self.ring.tighten()
        if self.policy.incident is not None:
            self.ring.incident(self.policy.incident.tick)
            return
        self.ring.healthy(tick)
        # Of an earlier step there is nothing to take any more; ranks have taken it when the step was over.
        if self.common is None and tick == self.tick and due:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        if self.ring.take(self.tick):
            self._memories[self.tick] = self.remember()
        self._memories = {tick: m for tick, m in self._memories.items() if tick in self.ring.ticks}
        self._save()

    def _save(self, *, now: bool = False) -> None:
        """Have the newest good snapshot written to disk: from time to time, and ``now`` at an incident."""
        if self.durable is None or self.tick == 0:
            return
        if self.common is None:
            self.durable.offer(self.ring, now=now)
        elif now:
            snapshot = self.ring.newest_good(among=self.common)
            if snapshot is not None and snapshot.step != self.durable.written:
                self.durable.submit(snapshot, now=True)

    @property
    def can_save(self) -> bool:
        """Whether a snapshot could be written to disk now. For ranks, which write the same ones."""
        return self.durable is not None and self.tick > 0 and self.durable.ready(self.ring)

    def save(self) -> None:
        """Have the newest snapshot that all ranks hold written to disk."""
        self._save(now=True)

    def _roll_back(self, move: Rollback, stats: StepStats) -> list[Action]:
        self.ring.incident(move.before_step)
        snapshot = self.ring.newest_good(move.before_step, self.common)
        if snapshot is None:
            return self._end(
                Stop(f"{move.reason}, and there is no good state to go back to", move.code), stats
            )
        to_tick = self.ring.restore(snapshot)
        self._save(now=True)
        self.buffers.keep()
        self.schedules.forget()
        if to_tick in self._memories:
            self.recall(self._memories[to_tick])
        details: dict[str, float] = {"steps_back": float(self.tick - to_tick)}
        done = f"back {self.tick - to_tick} steps"
        if move.clip is not None:
            details["max_norm"] = move.clip
            done += f", clipped at {move.clip:.3g}"
        if move.lr_factor != 1.0:
            details["lr_factor"] = move.lr_factor
            done += f", learning rate x {move.lr_factor:g} after a warm-up of {self.policy.limits.rewarm_steps} steps"
        if move.clip is None and move.lr_factor == 1.0:
            done += ", past the bad data"
        return [Action(stats.step, "rollback", f"{move.reason}: {done}", move.code, stats.optimizer, details)]

    def _end(self, stop: Stop, stats: StepStats) -> list[Action]:
        """The ladder is at its end: leave the last good state in the model, and on disk."""
        self.stop = stop
        snapshot = self.ring.newest_good(self.tick, self.common)
        if snapshot is not None:
            self.ring.restore(snapshot)
            self._save(now=True)
        return [Action(stats.step, "stop", stop.reason, stop.code, stats.optimizer)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know: the memory that the snapshots take, if it is not little."""
        size = self.ring.memory_bytes
        return (
            (f"{len(self.ring.ticks)} snapshots in memory take {size / 1e9:.2f} GB",) if size > SMALL else ()
        )

    def close(self) -> None:
        """Wait for snapshots that are being written."""
        if self.durable is not None:
            self.durable.close()
