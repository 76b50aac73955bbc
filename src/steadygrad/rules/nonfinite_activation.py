from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule


@dataclass
class NonfiniteActivation(Rule):
    """A module puts out NaN or infinity.

    What it measures: the root mean square of module outputs on sampled steps. It names the first module in the
    order of the forward pass whose output is not finite.

    Why it matters: it is where a non-finite loss was born, if there is one.

    Stays silent on: anything the loss and the gradient have not felt: it is only recorded, because a mask of
    -inf before a softmax is right and common.

    Remedies: a safe form of the operation in that module; float32 for it under autocast.

    Source: reliability.md B5.
    """

    code: ClassVar[str] = "A100"
    severity: ClassVar[Severity] = "info"
    needs: ClassVar = ("activations",)

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if not stats.activations:
            return None
        bad = [a for a in stats.activations if not math.isfinite(a.rms)]
        if not self.onset.begins("info" if bad else None):
            return None
        first = bad[0]
        kind = f" ({first.module_type})" if first.module_type else ""
        return self.tell(
            stats,
            "info",
            first.module or "model",
            f"the output of {first.module or 'the model'}{kind} is not finite, first of {len(bad)} modules",
            num_bad=float(len(bad)),
            input_rms=first.input_rms,
        )
