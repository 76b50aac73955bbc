from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

MOSTLY = 0.9
LOOKS = 3


@dataclass
class DeadUnits(Rule):
    """Most units of a ReLU put out nothing for the whole batch.

    What it measures: the fraction of units that are exactly 0 on the whole batch, on sampled steps. Recorded
    above 90 %; a warning when a whole layer is dead at three looks in a row, for then nothing passes it.

    Why it matters: a dead unit has no gradient and does not come back by itself.

    Stays silent on: outputs that are no ReLU's; sparse layers below 90 %.

    Remedies: a smaller learning rate; He initialisation with bias 0; a leaky slope.

    Source: AUTOTRAINER (70 % zero gradients), SageMaker Debugger (over 50 % of ReLUs active under 1 %).
    """

    code: ClassVar[str] = "A101"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar = ("activations",)

    looks: int = 0

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if not stats.activations:
            return None
        worst = max((a for a in stats.activations if a.dead > MOSTLY), key=lambda a: a.dead, default=None)
        self.looks = self.looks + 1 if worst is not None and worst.dead == 1 else 0
        severity: Severity | None = None if worst is None else "warning" if self.looks >= LOOKS else "info"
        if not self.onset.begins(severity) or severity is None or worst is None:
            return None
        return self.tell(
            stats,
            severity,
            worst.module,
            f"{worst.dead:.0%} of the units of {worst.module} are dead on the whole batch",
            dead=worst.dead,
            rms=worst.rms,
        )
