"""After a rollback: the steps that follow are trials, remedy by remedy, and the one that helps stays in force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steadygrad.guard.guard import Guard
from steadygrad.guard.snapshot import Snapshot
from steadygrad.integrations.in_force import CarefulChange, InForce
from steadygrad.records import Action, StepStats
from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.live import MOST, Course, beats, ladder, replaces, shared_losses, trial_length
from steadygrad.repair.remedy import Remedy
from steadygrad.rules.engine import RuleSet

Answer = tuple[float | None, float, int, int | None]
"""What the guard has in force: its clip, its factor on the rate, its rung, and since when the rate climbs back."""


@dataclass
class _Place:
    """A state of the run to go on from."""

    snapshot: Snapshot
    memory: Any  # of the detectors
    tick: int  # of the guard


class LiveRepair:
    """The trials on one run, and what they came to.

    A repair begins where the guard has rolled back. The steps that the loop takes from then on are the trials: first
    the twin, with what the guard has put in force; then each remedy in place of that, each from the state that the
    guard went back to. The remedy that is clearly better than the twin stays, with the state that its trial has
    trained; without one the run goes on as the guard alone would have let it.

    Args:
        guard: of the run.
        in_force: where remedies are put.
        rules: the detectors, which go back with the state.
        note: called with a sentence that the user should know.
        act: called with what a repair came to.
        length: steps of a trial, from the steps that the guard went back.
        paired: every trial is given the same batches.
    """

    def __init__(
        self,
        guard: Guard,
        in_force: InForce,
        rules: RuleSet,
        *,
        note: Callable[[str], None],
        act: Callable[[Action], None],
        length: Callable[[int], int] = trial_length,
        paired: bool = False,
    ) -> None:
        self.running = False
        self.trial = 0  # number of the trial that is running, over all repairs
        self.winner: int | None = None  # number of the trial that was kept in the last repair
        self.back_to = 0  # tick of the guard at the state that the trials start from
        self.steps = 0  # of each trial
        self._guard, self._in_force, self._rules, self._note = guard, in_force, rules, note
        self._act, self._length, self._paired = act, length, paired
        self._hooks: list[RemovableHandle] = []
        self._repairs = 0
        self._last: int | None = None  # tick of the last repair
        self._before = self._answer()
        self._start, self._best_end = Snapshot(), Snapshot()
        self._kept: list[tuple[Remedy, CarefulChange]] = []  # that stay in force

    # ------------------------------------------------------------------ around the guard's own decision
    def _answer(self) -> Answer:
        policy = self._guard.policy
        return policy.clip, policy.lr_factor, policy.rung, policy.rewarm_from

    def _answer_with(self, answer: Answer) -> None:
        policy = self._guard.policy
        policy.clip, policy.lr_factor, policy.rung, policy.rewarm_from = answer

    def before_the_guard(self) -> None:
        """The guard is about to judge a step: if it answers by a rollback, it must be known what was before."""
        self._before = self._answer()

    def begin(self, rollback: Action, optimizer: Optimizer) -> None:
        """The guard has just gone back. Nothing is done if this incident has had its repair, or the run all of its."""
        policy, tick = self._guard.policy, self._guard.tick
        soon = self._last is not None and tick - self._last <= policy.limits.same_place
        if soon or self._repairs >= MOST or self._guard.common is not None:
            return
        back = int(rollback.details.get("steps_back", 0))
        try:
            self._start.take(self._guard.state, tick)
        except (MemoryError, RuntimeError) as error:
            self._note(
                f"no remedies are tried: there is no memory for the state that they start from ({error})"
            )
            return
        self._repairs += 1
        self._last, self.back_to = tick, tick - back
        self._place = _Place(self._start, self._rules.state_dict(), tick)
        self._code, self._optimizer = rollback.code, rollback.optimizer
        self.steps = self._length(back)
        history = self._rules.history(rollback.optimizer)
        before = history.losses.median() if history.losses else math.nan
        known = [level for level in (before, history.start) if level is not None and math.isfinite(level)]
        self._level = max(known, default=math.inf)
        self._after = self._answer()
        self._waiting = ladder(history.median_clipped_norm(), optimizer.param_groups[0])
        self._optimizers = list(self._guard.state.optimizers)
        self._courses: list[Course] = []
        self._best: tuple[Course, _Place] | None = None
        self._change: CarefulChange | None = None
        self.winner = None
        self._step = rollback.step
        self.running = True
        self._open(None)
        if not self._paired:
            self._hooks = [
                m.register_forward_pre_hook(self._forward) for m in self._guard.state.modules if m.training
            ]

    # ------------------------------------------------------------------ trials
    def _open(self, remedy: Remedy | None) -> None:
        self.trial += 1
        self._course = Course(remedy)
        self._courses.append(self._course)
        if remedy is None:
            return
        self._answer_with(self._before)
        self._change = self._put(remedy, self._failed_in_trial)

    def _put(self, remedy: Remedy, failed: Callable[[Exception], None]) -> CarefulChange | None:
        try:
            change = CarefulChange(remedy.plan, failed, optimizers=self._optimizers)
        except NotApplicable as reason:
            self._course.note = str(reason)
            return None
        self._in_force.add(change)
        return change

    def _failed_in_trial(self, error: Exception) -> None:
        self._course.note = f"{type(error).__name__}: {error}"

    def _forward(self, module: nn.Module, args: Any) -> None:
        """A model that was in training is evaluated: that must not be with the weights of a trial."""
        if module.training or not self.running:
            return
        try:
            self.settle()
        except Exception as error:  # noqa: BLE001 - this is the user's forward pass
            self._end()
            self._note(
                f"the trials of remedies were ended by an error of ours ({type(error).__name__}: {error})"
            )

    def step(self, optimizer: Optimizer, stats: StepStats) -> None:
        """A step of a trial is over."""
        self._guard.step_over(optimizer, stats.optimizer, skipped=not stats.applied)
        self._step = stats.step
        course = self._course
        if stats.optimizer == self._optimizer:
            passes = max(1, stats.num_backwards)  # as the history counts
            course.step(
                stats.loss / passes if stats.loss is not None else None, stats.applied and stats.finite
            )
        if not (len(course.losses) >= self.steps or course.hopeless or course.note):
            return
        self._close()
        if self._waiting:
            self._go(self._place)
            self._open(self._waiting.pop(0))
        else:
            self._decide()

    def _close(self) -> None:
        """The trial that was running is over: keep its end if it is the best so far."""
        course, twin = self._course, self._courses[0]
        if course is not twin and beats(course, twin, self._level, paired=self._paired):
            best = self._best
            if best is None or replaces(course, best[0], paired=self._paired):
                self._keep_end(course)
        self._drop()

    def _drop(self) -> None:
        if self._change is not None:
            self._in_force.drop(self._change)
            self._change = None

    def _end(self) -> None:
        self.running = False
        self._drop()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def settle(self) -> None:
        """No more trials: decide by those that are over."""
        if not self.running:
            return
        self._courses.pop()
        if self._courses:
            self._decide()
        else:
            self.abandon()

    def _keep_end(self, course: Course) -> None:
        try:
            capture = self._guard.state.capture()
            course.poisoned = bool(capture.nonfinite_names())
            if not course.poisoned:
                self._best_end.take(self._guard.state, self._guard.tick, capture, finite=True)
                end = _Place(self._best_end, self._rules.state_dict(), self._guard.tick)
                self._best = course, end
                self.winner = self.trial
        except (MemoryError, RuntimeError):  # then its remedy is kept, and its steps are taken again
            self._best = course, self._place
            self.winner = self.trial

    def _go(self, place: _Place) -> None:
        """Put the run where it was then."""
        place.snapshot.restore(self._guard.state, rng=False)
        self._rules.load_state_dict(place.memory)
        self._guard.moved(place.tick)

    def _decide(self) -> None:
        self._end()
        ends = {c.name: c.end for c in self._courses if not c.note}
        details = {**ends, "trial_steps": float(self.steps), "trials": float(len(ends))}
        if self._best is None:
            self._go(self._place)
            self._answer_with(self._after)
            reason = (
                f"{len(ends) - 1} remedies were tried for {self.steps} steps each: "
                f"none is clearly better than the guard alone"
            )
            self._act(Action(self._step, "remedy", reason, self._code, self._optimizer, details))
            return
        course, place = self._best
        self._go(place)
        self._answer_with(self._before)
        assert course.remedy is not None
        self._keep(course.remedy)
        twin = self._courses[0]
        free = shared_losses(course, twin) if self._paired else 0
        its = "could not go on" if twin.failed(self._level, free) else f"came to {twin.end:.3g}"
        reason = (
            f"{course.name} stays in force: after {self.steps} steps its loss is {course.end:.3g}, "
            f"and the guard alone {its} ({len(ends) - 1} remedies tried)"
        )
        self._act(Action(self._step, "remedy", reason, self._code, self._optimizer, details))

    def _keep(self, remedy: Remedy) -> None:
        change = self._put(remedy, self._failed_later(remedy.name))
        if change is not None:
            self._kept.append((remedy, change))

    def state_dict(self) -> dict[str, Any]:
        """The remedies in force and what repairs there were, as plain data. Between two repairs."""
        in_force = [
            {"name": remedy.name, "plan": dict(remedy.plan)}
            for remedy, change in self._kept
            if change.given_up is None
        ]
        return {"repairs": self._repairs, "last": self._last, "in_force": in_force}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back, and the remedies in force."""
        self._repairs, self._last = state["repairs"], state["last"]
        self._optimizers = list(self._guard.state.optimizers)
        for kept in state["in_force"]:
            self._course = Course(Remedy(kept["name"], kept["plan"], (), "tuning", 0.0, ""))
            assert self._course.remedy is not None
            self._keep(self._course.remedy)

    def _failed_later(self, name: str) -> Callable[[Exception], None]:
        def failed(error: Exception) -> None:
            self._note(
                f"{name} can no longer be kept in force, and was taken away ({type(error).__name__}: {error})"
            )

        return failed

    def abandon(self) -> None:
        """End the trials without a decision: the run goes on where the guard had put it, as if none had been made."""
        if not self.running:
            return
        self._end()
        self._go(self._place)
        self._answer_with(self._after)
        self.winner = None
