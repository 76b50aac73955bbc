from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen

LARGE = 10.0
KINDS = ("mse", "l1", "smooth_l1", "huber")
FIRST_STEPS = 3


@dataclass
class UnscaledTargets(PortraitRule):
    """What the model is to put out is large, and it puts out little.

    What it measures: in the first steps, the RMS of the targets of a regression loss: above 10, and above 10 times
    that of the predictions.

    Why it matters: the gradient of a squared error is as large as the error; the output layer must grow to the size
    of the targets before anything is learned, and everything below it is shaken meanwhile.

    Stays silent on: class indices; models that begin at the size of their targets.

    Remedies: standardise the targets and turn predictions back; a loss that is linear far out (smooth L1); clipping.

    Source: science.md section 2 (rms(y) > 10); van Hasselt et al. (2016), arXiv 1602.07714.
    """

    code: ClassVar[str] = "F108"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        if stats.step >= FIRST_STEPS:
            return None
        for term in portrait.terms:
            far = not term.prediction_rms * LARGE >= term.target_rms
            if term.kind in KINDS and term.target_rms > LARGE and far:
                return Seen(
                    "loss",
                    f"the targets of the {term.kind} loss have rms {term.target_rms:.3g} (mean {term.target_mean:.3g}, "
                    f"spread {term.target_std:.3g}), the predictions {term.prediction_rms:.3g}",
                    {"target_rms": term.target_rms, "mean": term.target_mean, "std": term.target_std},
                )
        return None
