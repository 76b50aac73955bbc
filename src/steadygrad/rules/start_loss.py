from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import LossTerm, Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen

TIMES = 8.0
SQUARES = 50.0
FIRST_STEPS = 2
KINDS = ("cross_entropy", "bce", "bce_logits")


@dataclass
class StartLoss(PortraitRule):
    """The loss begins far above what a net that knows nothing should give.

    What it measures: in the first two steps, a cross entropy over C classes against ln C, a binary one against ln 2:
    more than 8 times as much; a squared error against 1 plus the mean square of its targets: more than 50 times.

    Why it matters: a net that knows nothing should say so. Large first logits make the first gradients wrong in every
    layer, and a softmax that is sure of itself is slow to be taught.

    Stays silent on: losses of which nobody can say what they should give; a model that was trained before and is good.

    Remedies: smaller weights in the last layer (0 is best); scaled inputs.

    Source: Karpathy, A Recipe for Training Neural Networks (2019), "verify loss at init"; science.md section 2.
    """

    code: ClassVar[str] = "F106"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        if stats.step >= FIRST_STEPS:
            return None
        for term in portrait.terms:
            expected = expected_start(term)
            if term.value > (SQUARES if term.kind == "mse" else TIMES) * expected:
                return Seen(
                    "loss",
                    f"{term.kind} begins at {term.value:.3g}, {term.value / expected:.3g} times the {expected:.3g} "
                    "of a net that knows nothing",
                    {"value": term.value, "expected": expected, "ratio": term.value / expected},
                )
        return None


def expected_start(term: LossTerm) -> float:
    """What a loss should begin at in a net that knows nothing; nan where nobody can say."""
    if term.kind == "mse":
        return 1 + term.target_rms**2
    if term.kind == "cross_entropy" and term.classes > 1:
        return math.log(term.classes)
    return math.log(2) if term.kind in KINDS else math.nan
