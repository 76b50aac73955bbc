from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Onset, Rule, listing, sampled_name


@dataclass
class NonfiniteState(Rule):
    """The optimizer's memory of a parameter holds NaN or infinity.

    What it measures: whether every floating state tensor (momentum, `exp_avg`, `exp_avg_sq`, ...) is finite, on
    a rotating sixteenth of the parameters a step.

    Why it matters: after one NaN step Adam's moments stay NaN for ever, even if the weights are restored; an
    infinite second moment freezes its weight without a word.

    Stays silent on: a second moment that is huge but finite (see O103).

    Remedies: roll back weights and optimizer state together; or clear the state of that parameter.

    Source: reliability.md, fact 4.
    """

    code: ClassVar[str] = "O100"
    severity: ClassVar[Severity] = "alarm"
    needs: ClassVar = ("tensors",)

    onset: Onset = field(default_factory=lambda: Onset(quiet=10))

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        bad = [t.param for t in stats.tensors if not t.state_finite]
        if not bad:
            if stats.tensors:
                self.onset.begins(None)
            return None
        if not self.onset.begins("alarm"):
            return None
        names = [sampled_name(stats, i) for i in bad]
        return self.tell(
            stats,
            "alarm",
            names[0],
            f"non-finite optimizer state of {listing(names)}",
            num_bad=float(len(bad)),
        )
