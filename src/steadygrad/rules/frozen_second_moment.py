from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule, sampled_name

FROZEN = 1e-4
LOOKS = 3
LEARNED = 0.1


@dataclass
class FrozenSecondMoment(Rule):
    """Adam's second moment is so large that its weight stands still.

    What it measures: RMS_t = sqrt(mean(g^2 / v_hat)) of a sampled parameter below 1e-4 at three looks in a row,
    while the loss is still above a tenth of its start.

    Why it matters: one finite gradient of 1e20 leaves a second moment of 1e37. The weight then moves by nothing
    for thousands of steps, and nothing says so.

    Stays silent on: gradients that are exactly 0; a run whose loss has come near 0, where gradients are small
    with good reason; optimizers without a second moment.

    Remedies: go back to a state from before the spike; or clear the moments of that parameter.

    Source: reliability.md, fact 4 (progress 0.007 of 1.0 in the 1000 steps after).
    """

    code: ClassVar[str] = "O103"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar = ("tensors",)

    looks: dict[str, int] = field(default_factory=dict)  # parameter -> looks in a row at which it was frozen

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        now = history.reading(stats)
        if not stats.tensors or not now.usable:
            return None
        worst = None
        for t in stats.tensors:
            if math.isnan(t.adam_rms):
                continue
            name = sampled_name(stats, t.param)
            if 0 < t.adam_rms < FROZEN and not _learned(now.reference, now.start):
                self.looks[name] = self.looks.get(name, 0) + 1
                if self.looks[name] >= LOOKS and (worst is None or t.adam_rms < worst.adam_rms):
                    worst = t
            else:
                self.looks.pop(name, None)
        if not self.looks:
            self.onset.begins(None)
        if worst is None or not self.onset.begins("warning"):
            return None
        name = sampled_name(stats, worst.param)
        return self.tell(
            stats,
            "warning",
            name,
            f"{name} stands still: its gradient is {worst.adam_rms:.1e} of what Adam's second moment expects",
            adam_rms=worst.adam_rms,
            update_ratio=worst.update_ratio,
        )


def _learned(reference: float | None, start: float | None) -> bool:
    return reference is not None and start is not None and reference < LEARNED * abs(start)
