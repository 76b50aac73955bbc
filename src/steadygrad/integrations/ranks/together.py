"""The guard of several ranks: in each step they tell each other what they see, then each decides from all of it.

All that the guard decides from is the same on every rank: the merged facts of the step, a history of its own that only
such facts go into, and the ticks of the snapshots that all hold. So every rank comes to the same decision without
being told. What the rules make of a step is only known when it is over; it goes along with the next one's facts, and
the guard answers then: a step later than on one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.optim import Optimizer

from steadygrad.guard.guard import STALE, Agreed, Guard
from steadygrad.guard.policy import NONFINITE
from steadygrad.integrations.ranks.blame import origin_unknown, whose
from steadygrad.integrations.ranks.exchange import Exchange
from steadygrad.integrations.ranks.facts import Facts, Flag, Merged, lay_out, take_apart
from steadygrad.integrations.ranks.group import Group, RankLost, named
from steadygrad.integrations.ranks.meeting import Meeting, Tables
from steadygrad.integrations.ranks.origin import Origin
from steadygrad.integrations.ranks.parts import Part, parts_of, squares
from steadygrad.probe.probe import Probe
from steadygrad.probe.skips import share_overflow
from steadygrad.records import NAN, Action, Finding, StepStats
from steadygrad.rules import RULES
from steadygrad.rules.engine import RuleSet
from steadygrad.rules.history import History

SUSPICIOUS = 50  # steps in which all gradients are looked at, after one whose origin was not found


@dataclass(slots=True)
class _Step:
    """The newest step of this rank, until all have heard what became of it."""

    stats: StepStats  # as agreed, with the mean of the losses
    tick: int
    flags: Flag = Flag(0)
    alarm: int = 0
    level: float = -math.inf


class Together:
    """One rank's side of deciding with the others.

    Args:
        group: who decides.
        settings: how this rank watches: the same on all, or nothing begins.
        probe: reads the parts that lie here.
        rules: this rank's own.
        act: is told what the guard has done.

    Attributes:
        guard: of this rank; None where nothing is decided.
    """

    def __init__(
        self,
        group: Group,
        settings: Mapping[str, Any],
        probe: Probe,
        rules: RuleSet,
        act: Callable[[Action], None],
    ) -> None:
        self.group = group
        self.guard: Guard | None = None
        self._settings, self._probe, self._rules, self._act = settings, probe, rules, act
        self._meeting = Meeting(group)
        self._exchange: Exchange | None = None
        self._tables = Tables((), ())
        self._parts: dict[int, list[Part]] = {}  # by optimizer
        self._known: tuple[int, ...] = ()  # numbers of parameters, as of the last meeting
        self._moved = False
        self._histories: dict[int, History] = {}  # of what all ranks agree on
        self._last: _Step | None = None
        self._tick = 0
        self._origin = Origin()
        self._suspicious_until = -1
        probe.whole = False

    # ------------------------------------------------------------------ what is asked
    def history(self, optimizer: int) -> History:
        """The statistics of one optimizer, of numbers that are the same on all ranks."""
        if optimizer not in self._histories:
            self._histories[optimizer] = History()
        return self._histories[optimizer]

    @property
    def sums(self) -> int:
        """How often the ranks have added up what they know: collectives so far."""
        return self._exchange.count if self._exchange is not None else 0

    def remember(self) -> dict[str, Any]:
        """What the detectors and the common histories know, for a snapshot."""
        common = {str(i): h.state_dict() for i, h in self._histories.items()}
        return {"rules": self._rules.state_dict(), "common": common}

    def recall(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self._rules.load_state_dict(state["rules"])
        for gone in self._histories.keys() - {int(i) for i in state["common"]}:
            del self._histories[gone]
        for i, saved in state["common"].items():
            self.history(int(i)).load_state_dict(saved)

    # ------------------------------------------------------------------ the course of a step
    def before(self, optimizer: Optimizer, stats: StepStats) -> tuple[StepStats, Agreed, bool]:
        """A step begins. Waits for the other ranks.

        Args:
            optimizer: about to step.
            stats: of this rank's own gradients, or of its parts of them.

        Returns:
            The same with the norms of the whole; what the guard has to know besides; and whether the run has been put
            back to another state, by what all ranks now know of the step before.

        Raises:
            RanksDiffer, RankLost: see there.
        """
        self._meet(stats.optimizer)
        if not self._needed:
            return stats, Agreed(), False
        if self.guard is not None and not self.guard.ring.ticks:
            self.guard.keep()
        facts = self._facts(stats)
        merged = self._add_up(facts, stats.grad_norms, self._probe.applied)
        put_back = self._settle(merged)
        stats = self._with_whole_norms(stats, merged)
        passes = max(said.passes for said in merged.ranks)
        self._last = _Step(replace(stats, loss=merged.loss, num_backwards=passes), facts.tick)
        if merged.any(Flag.OVERFLOW):
            share_overflow(optimizer)
        self._look_closer(merged)
        self._origin.forget()
        return stats, Agreed(self._poisoned(merged), whose(merged, self.group.ranks)), put_back

    def overflow(self, optimizer: Optimizer, step: Callable[[], int]) -> tuple[Action | None, bool]:
        """The GradScaler of this rank takes no step. If the others' do, they leave it out as well.

        Args:
            optimizer: whose step is left out.
            step: counts it as a step that was not taken, and gives its number. Called where the others count it.

        Returns:
            The skip, where not all have overflowed; and whether the run has been put back, as for `before`.
        """
        index = self._probe.optimizer_index(optimizer)
        self._meet(index)
        if not self._needed:
            return None, False
        facts = Facts(self._tick, index, self._own_flags() | Flag.OVERFLOW)
        merged = self._add_up(facts, np.zeros(0), np.zeros(0))
        put_back = self._settle(merged)
        self._origin.forget()
        if merged.all(Flag.OVERFLOW):
            return None, put_back
        nothing = np.zeros(0, np.float32)
        stats = StepStats(step(), index, None, math.inf, math.inf, nothing, NAN, applied=False)
        self._last = _Step(replace(stats, loss=merged.loss), self._tick, Flag.SKIPPED)
        self._tick += 1
        if self.guard is None:
            return None, put_back
        self.guard.step_over(optimizer, index, skipped=True)
        if put_back:  # the others leave it out for that
            return Action(stats.step, "skip", STALE.reason, STALE.code, index), True
        reason = f"the gradient is not finite ({whose(merged, self.group.ranks)})"
        return Action(stats.step, "skip", reason, "G100", index), False

    def step_over(self, stats: StepStats, *, skipped: bool) -> None:
        """The step is over on this rank, taken or not, and `judged`."""
        self._tick += 1
        if self._last is not None:
            self._last.flags |= Flag.SKIPPED if skipped else Flag(0)
            self._last.flags |= Flag.APPLIED if stats.applied else Flag(0)
        if self.guard is not None and stats.applied:
            self.guard.keep()

    def judged(self, stats: StepStats, findings: Sequence[Finding], *, skipped: bool) -> None:
        """This rank's rules have judged the step that is over."""
        last = self._last
        if last is None or self.guard is None:
            return
        alarms = [f for f in findings if f.severity == "alarm"]
        if alarms or self._rules.alarming(stats.optimizer):
            last.flags |= Flag.ALARMED
        for finding in alarms:
            if finding.code not in NONFINITE and not last.alarm:
                last.alarm = 1 + next(i for i, rule in enumerate(RULES) if rule.code == finding.code)
                last.level = finding.evidence.get("loss_before", -math.inf)
        if self.guard.poison(stats, findings, skipped=skipped):
            last.flags |= Flag.BAD_STATE

    def leave(self, reason: str) -> None:
        """Take no part any more; the others are told why."""
        self._origin.close()
        self._probe.whole = True
        if self._exchange is not None:
            self._exchange.leave(reason)
        else:
            self._meeting.leave(reason)

    # ------------------------------------------------------------------ talking
    @property
    def _needed(self) -> bool:
        """Whether there is anything to add up: the guard decides, or a norm is spread over the ranks."""
        return self.guard is not None or bool(self._tables.keys)

    def _meet(self, optimizer: int) -> None:
        """Before the first step of each optimizer, and when a rank has said that its parameters are others."""
        trained = self._probe.trained()
        if self._exchange is not None and optimizer in self._parts and not self._moved:
            return
        self._parts = {i: parts_of(i, infos, params) for i, (infos, params) in enumerate(trained)}
        shards = {part.key: part.ranks for parts in self._parts.values() for part in parts}
        self._tables = self._meeting.meet(self._settings, shards)
        self._known, self._moved = tuple(len(params) for _, params in trained), False
        if self._exchange is None:
            self._exchange = Exchange(self.group, self._meeting)
        self._watch_origin(everything=False)

    def _watch_origin(self, *, everything: bool) -> None:
        params = [p for _, params in self._probe.trained() for p in params]
        if self.guard is not None:
            self._origin.watch(self._probe.roots, params, everything=everything)

    def _look_closer(self, merged: Merged) -> None:
        """Look at all gradients for a while where a bad one came from nobody, at a few of them else."""
        if origin_unknown(merged):
            if self._tick > self._suspicious_until:
                self._watch_origin(everything=True)
            self._suspicious_until = self._tick + SUSPICIOUS
        elif self._tick == self._suspicious_until:
            self._watch_origin(everything=False)

    def _own_flags(self) -> Flag:
        """What there is to say whatever the step is like."""
        flags = self._last.flags if self._last is not None else Flag(0)
        if tuple(len(params) for _, params in self._probe.trained()) != self._known:
            flags |= Flag.MOVED
        if self.guard is not None and self.guard.can_save:
            flags |= Flag.READY
        return flags

    def _facts(self, stats: StepStats) -> Facts:
        facts = Facts(self._tick, stats.optimizer, self._own_flags(), passes=stats.num_backwards)
        if stats.loss is not None:
            facts.flags |= Flag.SAW_LOSS
            facts.loss = stats.loss
        if not stats.finite:
            facts.flags |= Flag.BAD_GRADIENT
            if self._origin.own_gradient_is_bad():
                facts.flags |= Flag.BAD_OWN
        if not math.isfinite(facts.loss) or Flag.BAD_OWN in facts.flags:
            facts.sample = self._origin.bad_sample()
        if self.guard is not None and self.guard.buffers.poisoned():
            facts.flags |= Flag.BAD_BUFFER
        return facts

    def _add_up(self, facts: Facts, raw: np.ndarray, applied: np.ndarray) -> Merged:
        assert self._exchange is not None
        if self._last is not None:
            facts.alarm, facts.level = self._last.alarm, self._last.level
        if self.guard is not None:
            facts.held = self.guard.ring.good_ticks
        parts = self._parts[facts.optimizer] if raw.size else []
        raw_parts, facts.raw_square = squares(parts, raw)
        applied_parts, facts.applied_square = squares(parts, applied)
        vector = lay_out(facts, self._tables, self.group.me, raw_parts, applied_parts)
        merged = take_apart(self._exchange.add_up(vector), self._tables, self.group.me)
        self._check(merged)
        self._moved = merged.any(Flag.MOVED)
        return merged

    def _check(self, merged: Merged) -> None:
        """Nothing is decided for a step from what another rank has said of another step."""
        said = [(facts.tick, facts.optimizer) for facts in merged.ranks]
        if len(set(said)) > 1:
            each = ", ".join(
                f"rank {rank} is at step {tick} of optimizer {optimizer}"
                for rank, (tick, optimizer) in zip(self.group.ranks, said, strict=True)
            )
            raise RankLost(f"the ranks are not at the same step: {each}")

    # ------------------------------------------------------------------ what comes of it
    def _settle(self, merged: Merged) -> bool:
        """The guard judges the step before by what all ranks have made of it. Whether it has put the run back."""
        last, self._last = self._last, None
        if last is None or self.guard is None:
            return False
        self.guard.common = merged.common
        stats = replace(last.stats, applied=merged.all(Flag.APPLIED))
        history = self.history(stats.optimizer)
        history.ingest(stats, merged.any(Flag.ALARMED))
        poisoned = (
            [f"the state of {named(self._at(merged, Flag.BAD_STATE))}"] if merged.any(Flag.BAD_STATE) else []
        )
        actions = self.guard.judge(
            stats,
            self._alarms(stats, merged),
            history,
            last.tick,
            skipped=merged.any(Flag.SKIPPED),
            poisoned=poisoned,
        )
        for action in actions:
            self._act(action)
        if not actions and merged.all(Flag.READY):
            self.guard.save()
        return bool(actions)

    def _alarms(self, stats: StepStats, merged: Merged) -> list[Finding]:
        """The alarms of all ranks, in the words of none."""
        found = []
        for number in sorted({facts.alarm for facts in merged.ranks if facts.alarm}):
            rule = RULES[number - 1]
            ranks = [i for i, facts in enumerate(merged.ranks) if facts.alarm == number]
            level = max(merged.ranks[i].level for i in ranks)
            where = named([self.group.ranks[i] for i in ranks])
            message = f"{rule.name.replace('_', ' ')} on {where}"
            found.append(
                Finding(
                    rule.code,
                    rule.name,
                    stats.step,
                    where,
                    message,
                    {"loss_before": level},
                    "alarm",
                    stats.optimizer,
                )
            )
        return found

    def _with_whole_norms(self, stats: StepStats, merged: Merged) -> StepStats:
        norms = stats.grad_norms.copy()
        for part in self._parts[stats.optimizer]:
            whole = merged.raw[part.key]
            if whole or not math.isnan(norms[part.position]):
                norms[part.position] = whole
        return replace(
            stats, grad_norm=merged.grad_norm, clipped_grad_norm=merged.clipped_grad_norm, grad_norms=norms
        )

    def _poisoned(self, merged: Merged) -> list[str]:
        bad = self._at(merged, Flag.BAD_BUFFER)
        return [f"a buffer of {named(bad)}"] if bad else []

    def _at(self, merged: Merged, flag: Flag) -> list[int]:
        """Ranks, by their numbers in the world."""
        return [self.group.ranks[i] for i in merged.those(flag)]
