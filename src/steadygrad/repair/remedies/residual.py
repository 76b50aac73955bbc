"""Residual branches that start small."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedies._layers import branch_ends, named
from steadygrad.repair.remedy import Remedy

FEWEST = 2  # branches: one adds little
SERVES = ("residual_accumulation", "init_gain_large", "warmup_missing")
LIKELY = 0.1


def small_branches(case: Case) -> Iterator[Remedy]:
    """The last layer of each branch at a tenth, or at 0."""
    ends = branch_ends(case)
    if len(ends) < FEWEST:
        return
    for factor in (0.1, 0.0):
        yield Remedy(
            name=f"residual branches x {factor:g}",
            plan={"branch_scale": {"modules": ends, "factor": factor}},
            serves=SERVES,
            safety="surgery",
            intrusiveness=0.25,
            advice=f"multiply weight and bias of {named(ends)} by {factor:g} before the optimizer is built",
            family="branches",
        )
    if case.probability("residual_accumulation") > LIKELY:
        yield Remedy(
            name="residual branches behind gates",
            plan={"residual_gate": {"modules": ends, "start": 0.0}},
            serves=("residual_accumulation",),
            safety="surgery",
            intrusiveness=0.35,
            advice=f"multiply what {named(ends)} put out by steadygrad.nn.SkipInit(), one for each",
            family="branches",
        )
