from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen, biggest_jump, decades, stack, times

LIMIT = 3.0  # decades
MIN_LAYERS = 3


@dataclass
class BackwardGrowth(PortraitRule):
    """The gradient grows from layer to layer on its way to the input.

    What it measures: the RMS of the gradient at the output of the first weight matrix over that at the last hidden
    one, in the order in which they run: more than x1000.

    Why it matters: the first layers take steps that are orders of magnitude too long. A clip of the joint norm then
    starves all others to save them.

    Stays silent on: fewer than three layers; recurrences (F104).

    Remedies: initialisation with the gain of the activation; a normalisation in each block; residual blocks.

    Source: Glorot & Bengio (2010), sec. 4.2; science.md section 2 (B > 3).
    """

    code: ClassVar[str] = "F102"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        rows = stack(portrait)
        hidden = rows[:-1] if len(rows) > 2 else rows
        if len(rows) < MIN_LAYERS:
            return None
        first, last = hidden[0].grad_rms, hidden[-1].grad_rms
        growth = math.inf if math.isinf(first) and math.isfinite(last) else decades(first, last)
        if not growth > LIMIT:
            return None
        back = hidden[::-1]
        name, jump = biggest_jump(back, [row.grad_rms for row in back])
        text = f"the gradient grows {times(growth)} from {hidden[-1].name} back to {hidden[0].name}"
        where = name if jump > 0.7 * growth else f"{rows[0].name} .. {rows[-1].name}"
        return Seen(where, text, {"decades": growth, "layers": float(len(rows)), "jump": jump})
