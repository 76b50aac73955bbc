from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

LARGE = 10.0


@dataclass
class UnscaledInputs(Rule):
    """What goes into the model is large.

    What it measures: the root mean square of what the first weight is given, on sampled steps: above 10. One of the
    few rules with a bound in the user's units, for initialisations are made for inputs of about 1.

    Why it matters: raw pixels (0 to 255) or raw table columns make the first gradients as much larger, and the
    usable learning rate smaller by its square.

    Stays silent on: integer inputs, such as tokens. It only records: many such runs train, with Adam or with a
    normalisation first.

    Remedies: standardise the inputs; a BatchNorm first.

    Source: science.md section 2 (rms(x) > 10); AUTOTRAINER (mean |a| of at least 10 is abnormal data).
    """

    code: ClassVar[str] = "D101"
    severity: ClassVar[Severity] = "info"
    needs: ClassVar = ("portrait", "activations")

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        seen = _entry(stats)
        if seen is None:
            return None
        where, input_rms = seen
        if not self.onset.begins("info" if input_rms > LARGE else None):
            return None
        return self.tell(stats, "info", where, f"inputs of size {input_rms:.3g} (rms)", input_rms=input_rms)


def _entry(stats: StepStats) -> tuple[str, float] | None:
    """The first weight that is given numbers, and their size: a normalisation before it counts."""
    if stats.portrait is not None:
        repeated = {r.name for r in stats.portrait.recurrences}  # given their own state
        rows = [
            row
            for row in stats.portrait.layers
            if row.op != "Embedding" and row.name not in repeated and not math.isnan(row.input_rms)
        ]
        if rows:
            return rows[0].name, rows[0].input_rms
    if stats.activations:
        return stats.activations[0].module or "model", stats.activations[0].input_rms
    return None
