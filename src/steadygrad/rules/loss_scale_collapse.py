from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

MANY = 20  # from 2^26 it takes 16 halvings to 2^10


@dataclass
class LossScaleCollapse(Rule):
    """The GradScaler finds no scale at which the gradients are finite.

    What it measures: its scale, and the steps that it skipped in a row. An alarm when the scale has come down to
    below 1, or at 20 skips without one step between them.

    Why it matters: the scaler halves for ever and says nothing: 200 NaN steps make the scale 0, and nothing is
    trained any more. Overflow below a scale of 1 is not a matter of the scale.

    Stays silent on: ordinary overflow. Skipping now and then, and more often at the start, is how it works.

    Remedies: find the NaN (G100, A100); float32 for the layer that overflows; bfloat16.

    Source: reliability.md, fact 9 and B6; DeepSpeed PR 1958.
    """

    code: ClassVar[str] = "P101"
    severity: ClassVar[Severity] = "alarm"
    needs: ClassVar = ("loss_scale",)

    largest: float = 0.0
    skips: int = 0

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        scale = stats.loss_scale
        if scale is None:
            return None
        self.largest = max(self.largest, scale)
        # A record with a finite gradient is a step between: the skips before it are those in a row.
        self.skips += stats.amp_skips
        in_a_row = self.skips
        if stats.finite:
            self.skips = 0
        fell = scale < 1 <= self.largest
        if not self.onset.begins("alarm" if fell or in_a_row >= MANY else None):
            return None
        return self.tell(
            stats,
            "alarm",
            "model",
            f"loss scale {self.largest:.3g} -> {scale:.3g}, {in_a_row} steps skipped in a row",
            loss_scale=scale,
            largest=self.largest,
            skips=float(in_a_row),
        )
