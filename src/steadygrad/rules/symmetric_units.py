from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen, stack

FIRST_STEPS = 1


@dataclass
class SymmetricUnits(PortraitRule):
    """All units of a hidden layer are the same.

    What it measures: in the first step, two layers one after the other in whose weights all rows are equal, 0 included.

    Why it matters: equal units get equal gradients and stay equal: the layer is one unit wide, whatever its size. With
    two such layers of zeros, one on top of the other, nothing learns at all.

    Stays silent on: single layers that begin at 0 (the last one, adapters, the end of a residual branch).

    Remedies: a random initialisation (`sg.init.initialise`); zeros for biases and for the last layer of a branch only.

    Source: Goodfellow, Bengio & Courville, Deep Learning (2016), sec. 8.4.
    """

    code: ClassVar[str] = "F109"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        if stats.step >= FIRST_STEPS or portrait.residual:
            return None
        rows = stack(portrait)
        same = [a.name for a, b in pairwise(rows) if a.same_units and b.same_units]
        if not same:
            return None
        return Seen(
            same[0],
            f"all units of {same[0]} have the same weights"
            + (f", and of {len(same) - 1} more layers" if same[1:] else ""),
            {"layers": float(len(same))},
        )
