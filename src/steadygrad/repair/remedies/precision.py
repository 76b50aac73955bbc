"""Half precision, left."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

FAILED = 0.6  # lead: of the yardstick, at most


def precision(case: Case) -> Iterator[Remedy]:
    if not case.facts.in_half:
        return
    yield Remedy(
        name="float32",
        plan={"precision": "float32"},
        serves=("low_precision", "unsafe_op"),
        safety="exact",
        intrusiveness=0.15,
        advice="train in float32, or in bfloat16, which has its range: no autocast and no .half()",
        lead=FAILED if case.exploded or case.probability("low_precision") > 0 else None,
    )
