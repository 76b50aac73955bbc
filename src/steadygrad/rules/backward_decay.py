from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen, decades, stack

LIMIT = 3.0  # decades
MIN_LAYERS = 3


@dataclass
class BackwardDecay(PortraitRule):
    """The gradient fades from layer to layer on its way to the input.

    What it measures: the RMS of the gradient at the output of the first weight matrix over that at the last hidden
    one, in the order in which they run: less than 1/1000, or exactly 0. With four hidden ones or more, the largest
    over the first quarter (at least two) stands for the first.

    Why it matters: the first layers hardly learn, and what is above them learns from noise.

    Stays silent on: fewer than three layers; recurrences; a gradient that is 0 everywhere; a first matrix that waits
    for a zero one behind it, as in LoRA.

    Remedies: another activation than sigmoid; initialisation with the gain of the activation; normalisation; residual
    blocks.

    Source: Hochreiter (1991); Glorot & Bengio (2010), sec. 4.2; science.md section 2 (B < -3).
    """

    code: ClassVar[str] = "F103"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        rows = stack(portrait)
        if len(rows) < MIN_LAYERS:
            return None
        hidden = rows[:-1] if len(rows) > 2 else rows
        begin = hidden[: max(2, len(hidden) // 4)] if len(hidden) >= 4 else hidden[:1]
        first, last = max(row.grad_rms for row in begin), hidden[-1].grad_rms
        loss = decades(last, max(first, 1e-45))
        if not loss > LIMIT:
            return None
        shrink = decades(rows[1].input_rms, max(rows[-1].input_rms, 1e-45))
        return Seen(
            f"{rows[0].name} .. {rows[-1].name}",
            f"the gradient fades to {10**-loss:.1e} of its size from {hidden[-1].name} back to {hidden[0].name}",
            {"decades": loss, "layers": float(len(rows)), "forward_decades": -shrink},
        )
