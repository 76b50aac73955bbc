from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

MOSTLY = 0.8


@dataclass
class SaturatedUnits(Rule):
    """Most values of a tanh, sigmoid or softmax are at its flat ends.

    What it measures: the fraction of values where the slope is gone, on sampled steps: above 80 %.

    Why it matters: no gradient passes a flat end; what lies before it stops learning.

    Stays silent on: other activations. It only records: gates and confident classifiers saturate with reason.

    Remedies: smaller initial weights; scaled inputs; normalisation before the activation; for attention a
    normalisation of queries and keys.

    Source: SageMaker Debugger and DeepDiagnosis (over 50 % of units); Glorot & Bengio (2010), sec. 3.
    """

    code: ClassVar[str] = "A102"
    severity: ClassVar[Severity] = "info"
    needs: ClassVar = ("activations",)

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if not stats.activations:
            return None
        worst = max(
            (a for a in stats.activations if a.saturated > MOSTLY), key=lambda a: a.saturated, default=None
        )
        if not self.onset.begins("info" if worst else None) or worst is None:
            return None
        return self.tell(
            stats,
            "info",
            worst.module,
            f"{worst.saturated:.0%} of the outputs of {worst.module} ({worst.module_type}) are saturated",
            saturated=worst.saturated,
            input_rms=worst.input_rms,
        )
