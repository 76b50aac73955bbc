from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.depth import EVERY, profile
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

MIN_TOTAL_GAIN = 1e-3


@dataclass
class VanishingProfile(Rule):
    """The gradient fades layer by layer on its way to the input.

    What it measures: as G201, the median over weight matrices of the gradient RMS of one to that of the next,
    compounded over the layers: below 1/1000.

    Why it matters: the layers near the input hardly learn; the loss sits on a plateau.

    Stays silent on: one layer with a small gradient, fewer than three matrices, embeddings, parameters without a
    gradient. It only records: Adam evens out such a profile.

    Remedies: another activation than sigmoid; He or orthogonal initialisation; normalisation; residual blocks.

    Source: Glorot & Bengio (2010), sec. 4.2; AUTOTRAINER (first to last kernel below 1e-3).
    """

    code: ClassVar[str] = "G202"
    severity: ClassVar[Severity] = "info"

    next_look: int = 2

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if history.num_accepted < self.next_look or not history.reading(stats).usable:
            return None
        self.next_look = history.num_accepted + EVERY
        found = history.once(stats, profile)
        bad = found is not None and found.total_gain < MIN_TOTAL_GAIN
        if not self.onset.begins("info" if bad else None) or found is None:
            return None
        return self.tell(
            stats,
            "info",
            f"{found.first} .. {found.last}",
            f"gradient shrinks x{found.gain:.2f} per layer backwards, "
            f"x{found.total_gain:.1e} over {found.num_layers} layers",
            gain_per_layer=found.gain,
            total_gain=found.total_gain,
            num_layers=float(found.num_layers),
        )
