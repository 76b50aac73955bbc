from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, RecurrenceStats, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen

BACKWARD = 4.0  # decades from the last quarter of the steps to the first
FORWARD = 2.0
LARGE_STATE = 10.0
FLOAT32 = math.log10(3.4e38)


@dataclass
class RecurrenceGrowth(PortraitRule):
    """State or gradient grows from time step to time step through a weight that is used again and again.

    What it measures: for a weight that works on what came out of its last use (a recurrent layer of torch's, or one
    written by hand): log10 of the gradient at its uses, the first quarter of the steps against the last: more than 4;
    or of the state, last quarter against first: more than 2, with a state above 10. A ReLU recurrence can overflow
    forwards while its gradient looks harmless: both are looked at.

    Why it matters: growth is exponential in the number of steps; a longer sequence overflows.

    Stays silent on: a layer applied to many things side by side; gradients that fade with distance.

    Remedies: orthogonal or spectrally bounded recurrent weights; clipping; LSTM or GRU; shorter truncation.

    Source: Pascanu, Mikolov & Bengio (2013), sec. 2; science.md section 2 (R > 4).
    """

    code: ClassVar[str] = "F104"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        worst = max(portrait.recurrences, key=_excess, default=None)
        if worst is None or _excess(worst) <= 1:
            return None
        backward, forward = _excesses(worst)
        what, decades = (
            ("state", worst.forward_decades) if forward > backward else ("gradient", worst.backward_decades)
        )
        # From the middle of the first quarter to that of the last.
        per_step = 10 ** (decades / max(1.0, 0.75 * worst.steps))
        times = f"x{per_step:.2f} a step, {10**decades:.1e}" if math.isfinite(decades) else "without bound"
        depth = FLOAT32 / math.log10(per_step) if 1 < per_step < math.inf else math.nan
        return Seen(
            worst.name,
            f"the {what} grows {times} over {worst.steps} steps through {worst.name}",
            {
                "decades": decades,
                "steps": float(worst.steps),
                "per_step": per_step,
                "overflow_depth": depth,
                "gain": worst.gain,
                "excess": _excess(worst),
            },
        )


def _excess(r: RecurrenceStats) -> float:
    return max(_excesses(r))


def _excesses(r: RecurrenceStats) -> tuple[float, float]:
    """How far gradient and state are beyond their bounds, as ratios; 0 where nothing is known."""
    backward = r.backward_decades / BACKWARD if not math.isnan(r.backward_decades) else 0.0
    grown = r.state_rms > LARGE_STATE or math.isnan(r.state_rms)
    forward = r.forward_decades / FORWARD if grown and not math.isnan(r.forward_decades) else 0.0
    return backward, forward
