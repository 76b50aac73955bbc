from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule, sampled_name

STALE = 3.0
KEPT = 64


@dataclass
class StaleSecondMoment(Rule):
    """Adam's second moment is too small for the gradient that has come.

    What it measures: RMS_t = sqrt(mean(g^2 / v_hat)) of each sampled parameter. 1 is in balance; above 3, and
    above three times what this run usually has, the moment lags behind.

    Why it matters: the step is RMS_t times as long as the learning rate means it to be. Loss spikes follow one
    to eight steps later.

    Stays silent on: optimizers without a second moment; runs with heavy-tailed gradients, where it is usual. It
    only records: with a small learning rate nothing follows.

    Remedies: a smaller beta2 (0.95); update clipping (StableAdamW); clip the gradient.

    Source: Wortsman et al. (2023), https://arxiv.org/abs/2304.13013, sec. 3.4.
    """

    code: ClassVar[str] = "O102"
    severity: ClassVar[Severity] = "info"
    needs: ClassVar = ("tensors",)

    usual: list[float] = field(default_factory=list)  # largest RMS_t of each of the last steps

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        looked_at = [t for t in stats.tensors if math.isfinite(t.adam_rms)]
        if not looked_at or not history.reading(stats).usable:
            return None
        worst = max(looked_at, key=lambda t: t.adam_rms)
        rms, stale, middle = worst.adam_rms, False, 0.0
        if rms > STALE and len(self.usual) >= 16:
            middle = sorted(self.usual)[len(self.usual) // 2]
            stale = rms > STALE * middle
        self.usual.append(rms)
        if len(self.usual) > KEPT:
            del self.usual[0]
        if not self.onset.begins("info" if stale else None):
            return None
        name = sampled_name(stats, worst.param)
        return self.tell(
            stats,
            "info",
            name,
            f"the gradient of {name} is {rms:.3g} times what Adam's second moment expects (usually {middle:.2g})",
            adam_rms=rms,
            usual=middle,
        )
