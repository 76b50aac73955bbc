"""Mistakes of the training loop that can be mended from outside of it."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

FAILED = 0.6


def zero_gradients(case: Case) -> Iterator[Remedy]:
    if case.has("M101"):
        yield Remedy(
            name="zero_grad",
            plan={"zero_gradients": 1},
            serves=("loop_mistake",),
            safety="exact",
            intrusiveness=0.02,
            advice="call optimizer.zero_grad() before loss.backward()",
            lead=FAILED,
        )


def clear_after_step(case: Case) -> Iterator[Remedy]:
    if case.has("M105") and case.survey.get("clearing"):
        yield Remedy(
            name="zero_grad behind the step",
            plan={"clear_after_step": 1},
            serves=("loop_mistake",),
            safety="exact",
            intrusiveness=0.02,
            advice="call optimizer.zero_grad() behind optimizer.step(), not between loss.backward() and it",
            lead=FAILED,
        )


def train_mode(case: Case) -> Iterator[Remedy]:
    if case.has("M103"):
        yield Remedy(
            name="train mode",
            plan={"train_mode": 1},
            serves=("loop_mistake",),
            safety="exact",
            intrusiveness=0.05,
            advice="call model.train() after each evaluation",
            lead=FAILED,
        )
