from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen

FLOAT16 = 65504.0
SHARE = 0.25


@dataclass
class HalfHeadroom(PortraitRule):
    """Values come close to the end of float16.

    What it measures: the largest absolute value that a layer computing in float16 is given: more than a quarter of
    65504.

    Why it matters: one factor of 4 later it is infinite, and so is the loss.

    Stays silent on: bfloat16 and float32, which reach 3e38.

    Remedies: bfloat16; that layer in float32; a normalisation before it.

    Source: Micikevicius et al. (2018), arXiv 1710.03740, sec. 3; science.md section 2.
    """

    code: ClassVar[str] = "F107"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        for row in portrait.layers:
            if row.dtype == "float16" and row.input_max > SHARE * FLOAT16:
                return Seen(
                    row.name,
                    f"{row.name} is given {row.input_max:.3g} in float16, which ends at 65504",
                    {"input_max": row.input_max, "share": row.input_max / FLOAT16},
                )
        return None
