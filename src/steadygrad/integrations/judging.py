"""Steps that are over are judged, in their order: at once, or in a row where that comes to the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from steadygrad.guard.guard import Guard
from steadygrad.integrations.docket import Docket, Waiting
from steadygrad.integrations.live_repair import LiveRepair
from steadygrad.integrations.reasons import Reasons
from steadygrad.integrations.run_record import RunRecord
from steadygrad.probe.ended import Ended
from steadygrad.probe.probe import Probe
from steadygrad.records import StepStats
from steadygrad.rules.engine import RuleSet

if TYPE_CHECKING:
    from steadygrad.integrations.ranks.together import Together

MEASURES = ("spread", "effective_rank", "alignment", "uniformity")


class Judging:
    """Has the rules look at each step that is over, and the guard act on what they find.

    Args:
        rules: the detectors.
        reasons: is told what they found.
        record: gets each step, finding and action.
        probe: knows the parameters that the numbers of a step belong to.
    """

    def __init__(self, rules: RuleSet, reasons: Reasons, record: RunRecord, probe: Probe) -> None:
        self.probe = probe
        self.guard: Guard | None = None
        self.live: LiveRepair | None = None
        self.together: Together | None = None  # where several ranks decide alike
        self.may_wait = False  # an ordinary step
        self._rules, self._reasons, self._record = rules, reasons, record
        self._docket = Docket()

    def write(self, stats: StepStats) -> None:
        """A step goes on record."""
        clip = self.guard.policy.clip if self.guard is not None else None
        more = {} if clip is None else {"guard_clip": clip}
        seen = stats.embedding
        if seen is not None:
            more |= {f"embedding/{name}": getattr(seen, name) for name in MEASURES}
        self._record.step(stats, self.probe.params, more)

    def over(self, optimizer: Optimizer, ended: Ended, skipped: bool) -> None:
        """A step of the run is over: it is judged, or waits for the next ones if that comes to the same."""
        if not ended.waits:
            self.write(ended.stats)
        if ended.unread is None:
            self._reasons.step_over(ended.stats)
        tick = (
            self.guard.step_over(optimizer, ended.stats.optimizer, skipped=skipped)
            if self.guard is not None
            else 0
        )
        self._docket.add(optimizer, ended, tick, skipped)
        if ended.unread is not None:
            return  # what there is to judge is not known before the next step
        may_wait = self._docket.ordinary(ended.stats) and self.live is None
        may_wait = may_wait and (self.may_wait or ended.waits)
        if not may_wait or self._docket.full or (self.guard is not None and self.guard.busy):
            self.settle()
        if self.together is not None:
            self.together.step_over(ended.stats, skipped=skipped)

    def catch_up(self) -> bool:
        """A step begins: the numbers of the last one have arrived. Whether they have put the run back."""
        step = self._complete()
        if step is None:
            return False
        may_wait = self.may_wait and self._docket.ordinary(step.stats) and not self._docket.full
        return not may_wait and self._judge_all()

    def settle(self) -> bool:
        """Judge the steps that wait. Whether the guard has put the run into another state."""
        self._complete()
        return self._judge_all()

    def _complete(self) -> Waiting | None:
        """The step that waited for its numbers goes on record with them, and what was done about it."""
        completed = self._docket.complete()
        if completed is None:
            return None
        step, unread = completed
        if unread is not None:
            self._reasons.step_over(step.stats)
            if self.guard is not None:
                history = self._rules.history(step.stats.optimizer)
                action = self.guard.learn(step.stats, history, unread.further)
                if action is not None:
                    self._record.action(action)
        self.write(step.stats)
        return step

    def _judge_all(self) -> bool:
        waiting = self._docket.take()
        put_back = any([self._judge(step) for step in waiting])
        for index in {step.stats.optimizer for step in waiting}:
            self._docket.learn(index, self._rules.history(index))
        return put_back

    def _judge(self, step: Waiting) -> bool:
        """Ask for reasons, and have the guard act. Whether it has put the run into another state."""
        stats, optimizer = step.stats, step.optimizer()
        findings = self._rules.observe(stats)
        for finding in findings:
            self._record.finding(finding)
        self._reasons.judged(optimizer, stats, findings, self._rules)
        if self.together is not None:
            self.together.judged(stats, findings, skipped=step.skipped)
            return False
        if self.guard is None:
            return False
        if self.live is not None:
            self.live.before_the_guard()
        history = self._rules.history(stats.optimizer)
        actions = self.guard.judge(stats, findings, history, step.tick, skipped=step.skipped)
        for action in actions:
            self._record.action(action)
            if action.action == "rollback" and self.live is not None and optimizer is not None:
                self.live.begin(action, optimizer)
        return bool(actions)
