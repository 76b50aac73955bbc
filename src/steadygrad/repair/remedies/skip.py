"""Leave out the steps that are odd, and go on."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

SPIKE = 20.0  # times the median norm of the last 50 steps
HISTORY = 10  # steps before which nothing is usual, and so nothing odd
NONFINITE = ("L100", "G100", "A100", "P100")
FAILED = 0.6  # lead: of the yardstick, at most
SPIKED = 0.3


def skip(case: Case) -> Iterator[Remedy]:
    """Skip what is not finite; then also gradients far out of the usual."""
    facts = case.facts
    struck = case.has(*NONFINITE) or facts.located is not None
    one_batch = facts.one_step_only or facts.located is not None and facts.located.kind == "data"
    unprepared = facts.was_normal or facts.located is not None and not facts.had_grown
    if struck:
        yield Remedy(
            name="skip non-finite steps",
            plan={"skip_nonfinite": 1},
            serves=("unsafe_op", "bad_batch", "low_precision"),
            safety="exact",
            intrusiveness=0.02,
            advice="do not call optimizer.step() when the loss or a gradient is not finite, and look at that batch",
            lead=FAILED if one_batch or unprepared else None,
            family="skip",
        )
    if not case.exploded and not case.has("L102", "G103", "L103"):
        return
    late = case.failed_at is not None and case.failed_at >= HISTORY
    yield Remedy(
        name="skip odd steps",
        plan={"skip_above": SPIKE},
        serves=("bad_batch", "data_shift", "stale_second_moment"),
        safety="exact",
        intrusiveness=0.05,
        advice=f"do not call optimizer.step() when the gradient norm is {SPIKE:.0f} times its usual size, and look "
        "at that batch",
        lead=SPIKED if late else None,
        family="skip",
    )
