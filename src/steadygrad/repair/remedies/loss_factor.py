"""A loss that is a sum, divided to a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.diagnose.vote import MANY
from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

FAILED = 0.6  # lead: of the yardstick, at most


def mean_loss(case: Case) -> Iterator[Remedy]:
    """Divide by what the loss is of its mean; or, where that is not known, by the steps of time that it sums over."""
    facts = case.facts
    portrait = facts.portrait
    if portrait is None:
        return
    weights = [t.weight for t in portrait.terms if math.isfinite(t.weight)]
    weight = max(weights, default=1.0) * facts.num_backwards
    steps = max((r.steps for r in portrait.recurrences), default=0)
    over_time = steps >= MANY and 0.5 < weight / steps < 2
    divisors = [weight] if weight >= MANY else []
    if steps >= MANY and (not weights or weight >= MANY) and not over_time:
        divisors.append(float(steps))
    for divisor in divisors:
        what = "the loss" if divisor == weight else f"what is added up over {steps} time steps"
        sure = divisor == weight and (over_time or case.has("M110"))
        yield Remedy(
            name=f"loss / {divisor:.3g}",
            plan={"gradient_factor": 1 / divisor},
            serves=("loss_reduction",),
            safety="tuning",
            intrusiveness=0.08,
            advice=f"take the mean instead of the sum: divide {what} by {divisor:.3g}",
            lead=FAILED if sure else None,
            family="loss_factor",
        )
