from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Onset, Rule, listing, sampled_name


@dataclass
class NonfiniteParameter(Rule):
    """A weight is NaN or infinite.

    What it measures: whether each weight is finite, on a rotating sixteenth of the parameters a step.

    Why it matters: nothing that the optimizer does brings such a weight back. Only a state from before does.

    Stays silent on: non-finite activations (see A100), gradients (G100), optimizer state (O100).

    Remedies: roll back to a state from before it, then treat what made it.

    Source: reliability.md B3.
    """

    code: ClassVar[str] = "P100"
    severity: ClassVar[Severity] = "alarm"
    needs: ClassVar = ("tensors",)

    onset: Onset = field(default_factory=lambda: Onset(quiet=10))

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        bad = [t.param for t in stats.tensors if not t.weight_finite]
        if not bad:
            if stats.tensors:
                self.onset.begins(None)
            return None
        if not self.onset.begins("alarm"):
            return None
        names = [sampled_name(stats, i) for i in bad]
        return self.tell(
            stats, "alarm", names[0], f"non-finite weights in {listing(names)}", num_bad=float(len(bad))
        )
