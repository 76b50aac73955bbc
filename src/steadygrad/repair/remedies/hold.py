"""Target networks that follow too fast."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

EVERY = (20, 100, 300)


def hold_targets(case: Case) -> Iterator[Remedy]:
    """For a run whose targets are made by the model itself."""
    portraits = [p for p in (case.facts.portrait, case.facts.at) if p is not None]
    moves = any(t.target_moves for p in portraits for t in p.terms)
    if not (moves or case.has("M113") or case.probability("bootstrapped_target") > 0):
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
            family="hold",
        )
