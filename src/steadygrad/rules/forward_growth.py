from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen, biggest_jump, decades, stack, times

LIMIT = 1.5  # decades
MIN_LAYERS = 3


@dataclass
class ForwardGrowth(PortraitRule):
    """The signal grows from layer to layer on its way to the loss.

    What it measures: the RMS of what the last weight matrix puts out over that of what the second one is given,
    in the order in which they run: more than x30 (1.5 decades). Ends against each other, so that a jump which
    a normalisation takes back counts for nothing.

    Why it matters: the loss begins far above what it should, its gradient is as much too large, and the next deeper
    net overflows.

    Stays silent on: fewer than three layers; large inputs (D101); growth that a normalisation undoes.

    Remedies: initialisation with the gain of the activation (`sg.init.initialise`); residual branches that begin at 0;
    a normalisation in each block.

    Source: He et al. (2015), sec. 2.2; science.md section 2 (F > 1.5).
    """

    code: ClassVar[str] = "F101"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        rows = stack(portrait)
        if len(rows) < MIN_LAYERS:
            return None
        values = [row.input_rms for row in rows[1:]]
        last = rows[-1].output_rms
        values += [last] if not math.isnan(last) else []
        known = [value for value in values if not math.isnan(value)]  # some inputs are not kept
        if len(known) < 2:
            return None
        growth = math.inf if math.isinf(max(known)) else decades(known[-1], known[0])
        if not growth > LIMIT:
            return None
        name, jump = biggest_jump(rows[1:], values)
        one = jump > 0.7 * growth
        text = f"activations grow {times(growth)} over {len(rows)} layers"
        return Seen(
            name if one else f"{rows[0].name} .. {rows[-1].name}",
            text + (f", most of it in {name}" if one else ""),
            {
                "decades": growth,
                "layers": float(len(rows)),
                "jump": jump,
                "head": float(one and name == rows[-1].name),
            },
        )
