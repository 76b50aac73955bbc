from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats
from steadygrad.rules.depth import EVERY, profile
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

MAX_TOTAL_GAIN = 1e3


@dataclass
class ExplodingProfile(Rule):
    """The gradient grows layer by layer on its way to the input.

    What it measures: the median over weight matrices, in registration order, of the gradient RMS of one to that
    of the next, raised to the number of layers. 1.2 is harmless over 5 layers (x2.5) and fatal over 100 (x8e7),
    so the compounded gain decides: above 1000.

    Why it matters: the layers near the input receive steps that are orders of magnitude too large; one global
    clip then starves the deep layers to save them.

    Stays silent on: a jump at one layer, a rise of all gradients together (G101), non-finite values (G100), fewer
    than three matrices, embeddings. It only records: the gradient of a weight also holds the size of its input.

    Remedies: orthogonal or He (std = sqrt(2 / fan_in)) initialisation; pre-norm residual blocks.

    Source: Glorot & Bengio (2010), sec. 4.2; Schoenholz et al. (2017).
    """

    code: ClassVar[str] = "G201"
    severity: ClassVar[Severity] = "info"

    next_look: int = 2

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if history.num_accepted < self.next_look or not history.reading(stats).usable:
            return None
        self.next_look = history.num_accepted + EVERY
        found = history.once(stats, profile)
        bad = found is not None and found.total_gain > MAX_TOTAL_GAIN
        if not self.onset.begins("info" if bad else None) or found is None:
            return None
        return self.tell(
            stats,
            "info",
            f"{found.first} .. {found.last}",
            f"gradient grows x{found.gain:.2f} per layer backwards, "
            f"x{found.total_gain:.1e} over {found.num_layers} layers",
            gain_per_layer=found.gain,
            total_gain=found.total_gain,
            num_layers=float(found.num_layers),
        )
