"""Target networks that follow too fast."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

EVERY = (20, 100, 300)
CLEAR, LEAD = 0.5, 0.6


def hold_targets(case: Case) -> Iterator[Remedy]:
    """For a run whose targets are made by the model itself."""
    probability = case.probability("bootstrapped_target")
    if not (case.targets_move or probability > 0):
        return
    for every in EVERY:
        if case.facts.steps and every > case.facts.steps / 3:
            return
        yield Remedy(
            name=f"targets held for {every} steps",
            plan={"hold_targets": every},
            serves=("bootstrapped_target",),
            safety="tuning",
            intrusiveness=0.2,
            advice=f"let the target network follow once every {every} steps only",
            lead=LEAD if probability > CLEAR else None,
            family="hold",
        )
