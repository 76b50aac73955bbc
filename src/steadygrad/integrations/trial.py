"""A run that is watched for a diagnosis, with one thing changed or, as the twin, with nothing changed."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from steadygrad.diagnose.casefile import CaseFile, optimizer_facts
from steadygrad.diagnose.trial import KEPT, TrialReport
from steadygrad.locating.live import LiveLocator
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.loss import without_sync
from steadygrad.probe.probe import Probe
from steadygrad.records import Finding, StepStats
from steadygrad.repair.effects.change import Change
from steadygrad.repair.survey import SURVEYORS
from steadygrad.rules.engine import RuleSet

T = TypeVar("T")
SEARCHING = (
    20  # overflows in a row in which a GradScaler may look for its scale; after them a step counts as skipped
)
HOPELESS = 50  # steps in a row that are not finite, after which a run has come to its end


def _guarded(default: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An error of ours ends the trial, and is told; it is not raised in the middle of the user's loop."""

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def safe(self: Trial, *args: Any, **kwargs: Any) -> T:
            if self._over:
                return cast(T, default)
            try:
                with torch.no_grad(), _disable_current_modes() if self._locator.armed else nullcontext():
                    return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever we did wrong
                self._give_up(error)
                return cast(T, default)

        return safe

    return decorate


class Trial:
    """The listener of one run: carries out a plan, and gathers what a diagnosis needs.

    Args:
        plan: what is changed; empty for the twin, of which no bit is changed.
        survey: what remedies must know is gathered as well, for the twin of a repair.
        failed: called with an error of ours; the plan is given back, and nothing is watched any longer.
        steps: the trial has :attr:`ended` after so many optimizer steps; None: when the run ends.
        at_end: called once when it has, may end the process.
    """

    def __init__(
        self,
        plan: Mapping[str, Any],
        *,
        survey: bool = False,
        failed: Callable[[Exception], None],
        steps: int | None = None,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self.ended = False
        self.steps = 0  # of the optimizer that has taken most
        self.joinpoints = JoinPoints(self)
        self._failed, self._most, self._at_end = failed, steps, at_end
        self._surveyors = [make(None) for make in SURVEYORS] if survey else []
        self._change = Change(plan, more=self._surveyors)
        self._taken_instead = False
        self._probe, self._rules, self._casefile = Probe(), RuleSet(), CaseFile()
        self._locator = LiveLocator()
        self._locates = not plan  # the twin alone: an arm is asked whether it trains
        self._findings: list[Finding] = []
        self._losses = array("d")
        self._main: int | None = None
        self._taken: dict[int, int] = {}
        self._skipped: dict[int, int] = {}
        self._open: dict[int, StepStats] = {}
        self._newest: StepStats | None = None
        self._module_types: tuple[str, ...] = ()
        self._met: set[int] = set()
        self._bad_in_a_row = 0
        self._overflows: dict[int, int] = {}  # of each optimizer, in a row
        self._over = False

    def install(self, *, existing: bool = True) -> None:
        """Listen to every optimizer of the process that is built from now on, and to those that exist.

        Args:
            existing: False: those that exist belong to other trainings.
        """
        self._change.install()
        self.joinpoints.install(all_optimizers=True)
        if not existing:
            for optimizer in self.joinpoints.optimizers():
                self.joinpoints.detach(optimizer)
            self._change.forget()

    def close(self) -> None:
        """Give everything back. Can be called again."""
        self._over = True
        self._change.undo_step()
        self._change.remove()
        self.joinpoints.remove()
        self._locator.close()
        self._probe.close()

    def report(self) -> TrialReport | None:
        """What has come of it so far; None before the first step."""
        self._locator.close()
        self._casefile.located = self._locator.found
        facts = self._casefile.facts()
        if facts is None:
            return None
        main = self._main or 0
        losses = self._losses[:: max(1, -(-len(self._losses) // KEPT))]
        return TrialReport(
            facts,
            tuple(self._findings),
            tuple(losses),
            self._taken[main],
            self._skipped.get(main, 0),
            whole=not self.ended,
            survey={s.key: dict(found) for s in self._surveyors if (found := s.found())},
            terms=self._casefile.late_terms(),
        )

    # ------------------------------------------------------------------ what the join points tell
    @_guarded(None)
    def optimizer_built(self, optimizer: Optimizer) -> None:
        self._change.optimizer_built(optimizer)

    def scheduler_built(self, scheduler: Any) -> None: ...

    @_guarded(None)
    def scaler_seen(self, scaler: Any) -> None:
        self._probe.saw_scaler(scaler)

    @_guarded(None)
    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        self._probe.saw_clip(params, max_norm)

    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None:
        self._amp_skipped(optimizer)
        self._go_on()

    @_guarded(None)
    def _amp_skipped(self, optimizer: Optimizer) -> None:
        """Nothing, while the scaler may still find a scale; a run in which it never does is one of skipped steps."""
        self._meet()
        index = self._probe.optimizer_index(optimizer)
        self._overflows[index] = self._overflows.get(index, 0) + 1
        if self._overflows[index] <= SEARCHING:
            self._probe.saw_amp_skip(optimizer)
        else:
            self._record(optimizer, self._probe.after(optimizer, self._probe.before(optimizer), False))

    @_guarded(None)
    def backward(self, roots: Sequence[Tensor]) -> None:
        self._meet()
        self._probe.saw_backward(roots)

    @_guarded(None)
    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if self._locates:
            self._locator.before_backward(roots, without_sync(values), self.steps)
        self._probe.saw_graph(roots)
        self._change.backward(roots, values)

    @_guarded(True)
    def before_step(self, optimizer: Optimizer) -> bool:
        self._meet()
        index = self._probe.optimizer_index(optimizer)
        self._open[index] = self._probe.before(optimizer)
        step = self._change.before_step(optimizer)
        self._taken_instead = step == "taken"
        return step == "take"

    @_guarded(None)
    def step_raised(self, optimizer: Optimizer) -> None:
        self._change.undo_step()
        self._probe.step_raised()
        self._open.pop(self._probe.optimizer_index(optimizer), None)

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self._after_step(optimizer, applied)
        self._go_on()

    def _go_on(self) -> None:
        """To the next step, if this one was not the last."""
        self._watch_next_step()
        done = self._most is not None and self.steps >= self._most
        if not self._over and not self.ended and (done or self._bad_in_a_row >= HOPELESS):
            self.ended = True
            if self._at_end is not None:
                self._at_end()

    def _watch_next_step(self) -> None:
        """Apart from all else: a mode cannot be entered or left while modes are switched off."""
        if self._over or self._newest is None or not self._locates:
            return
        try:
            self._locator.after_step(self._newest, self._probe.roots)
        except Exception as error:  # noqa: BLE001 - as in _guarded
            self._give_up(error)
        self._newest = None

    @_guarded(None)
    def _after_step(self, optimizer: Optimizer, applied: bool) -> None:
        applied = applied or self._taken_instead
        self._taken_instead = False
        self._change.after_step(optimizer, applied)
        index = self._probe.optimizer_index(optimizer)
        self._overflows[index] = 0
        self._record(optimizer, self._probe.after(optimizer, self._open.pop(index), applied))

    def _record(self, optimizer: Optimizer, stats: StepStats) -> None:
        found = self._rules.observe(stats)
        self._findings += found
        self._count(stats)
        self._newest = stats
        facts = optimizer_facts(optimizer, self._module_types)
        self._casefile.step(stats, found, self._rules.history(stats.optimizer), facts)

    def _count(self, stats: StepStats) -> None:
        index = stats.optimizer
        self._taken[index] = self._taken.get(index, 0) + 1
        self._skipped[index] = self._skipped.get(index, 0) + (not stats.applied)
        self.steps = max(self._taken.values())
        if self._main is None:
            self._main = index
        if index == self._main and stats.loss is not None:
            self._losses.append(stats.loss)
        bad = not stats.finite or stats.loss is not None and not math.isfinite(stats.loss)
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0

    def _meet(self) -> None:
        optimizers = self.joinpoints.optimizers()
        if all(id(o) in self._met for o in optimizers):
            return
        self._met = {id(o) for o in optimizers}
        self._probe.look_around(optimizers)
        for optimizer in optimizers:
            self._probe.optimizer_index(optimizer)
        self._module_types = tuple(sorted({type(m).__name__ for r in self._probe.roots for m in r.modules()}))

    def _give_up(self, error: Exception) -> None:
        self._over = True
        self._change.undo_step()
        self._change.remove()
        self.joinpoints.remove()
        self._failed(error)
