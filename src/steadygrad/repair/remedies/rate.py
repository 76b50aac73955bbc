"""The learning rate, and when it is reached."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

WARMUP_SHARE, WARMUP_STEPS = 0.2, 100
MANY = 50  # steps of a run that has a last half
RISES = 1.01  # times the rate of the step before: a schedule that goes up
CAP = 3.0
FLOOR = 0.3  # of the first rate
KEPT_UP = 0.6  # of a constant prediction's loss, that a run whose rate does not fall must reach


def lower_rate(case: Case) -> Iterator[Remedy]:
    for by, intrusiveness in ((10, 0.12), (100, 0.16), (1000, 0.2)):
        yield Remedy(
            name=f"lr / {by}",
            plan={"lr_factor": 1 / by},
            serves=(
                "lr_too_large",
                "warmup_missing",
                "momentum_too_large",
                "unscaled_inputs",
                "unscaled_targets",
            ),
            safety="tuning",
            intrusiveness=intrusiveness,
            advice=f"divide the learning rate by {by}{_rate(case, 1 / by)}",
            family="lr",
        )


def higher_rate(case: Case) -> Iterator[Remedy]:
    if case.exploded:
        return
    for by, intrusiveness in ((10, 0.15), (100, 0.2), (1000, 0.25)):
        yield Remedy(
            name=f"lr x {by}",
            plan={"lr_factor": float(by)},
            serves=("lr_too_small", "vanishing"),
            safety="tuning",
            intrusiveness=intrusiveness,
            advice=f"multiply the learning rate by {by}{_rate(case, by)}",
            family="lr",
        )


def warmup(case: Case) -> Iterator[Remedy]:
    steps = case.facts.steps
    steps = max(1, min(WARMUP_STEPS, round(WARMUP_SHARE * steps)) if steps else WARMUP_STEPS)
    yield Remedy(
        name=f"warm-up of {steps} steps",
        plan={"warmup_steps": steps},
        serves=("warmup_missing", "stale_second_moment", "attention_logit_growth", "dead_units"),
        safety="tuning",
        intrusiveness=0.1,
        advice=f"raise the learning rate from 0 over the first {steps} steps",
        family="warmup",
    )


def rewarm(case: Case) -> Iterator[Remedy]:
    """Rise anew wherever the schedule restarts."""
    if not case.facts.lr_jump > 2:
        return
    steps = max(1, min(WARMUP_STEPS, round(0.1 * case.facts.steps)) if case.facts.steps else WARMUP_STEPS)
    yield Remedy(
        name=f"re-warm-up of {steps} steps",
        plan={"rewarm_steps": steps},
        serves=("warmup_missing", "lr_too_large"),
        safety="tuning",
        intrusiveness=0.1,
        advice=f"raise the learning rate over {steps} steps after each restart of the schedule",
        family="warmup",
    )


def capped_rate(case: Case) -> Iterator[Remedy]:
    """For a schedule that was raising the rate when it went wrong, or will raise it far."""
    facts, rates = case.facts, case.survey.get("rates", {})
    rises = rates.get("highest", 0.0) > CAP * rates.get("first", math.inf)
    if not (facts.lr_jump > RISES or facts.lr_peak > CAP * facts.lr or rises):
        return
    yield Remedy(
        name=f"lr never above {CAP:g} x its first",
        plan={"lr_cap": CAP},
        serves=("lr_too_large", "data_shift"),
        safety="tuning",
        intrusiveness=0.1,
        advice=f"bound the schedule at {CAP:g} times the learning rate of the first step",
        family="lr_cap",
    )


def floored_rate(case: Case) -> Iterator[Remedy]:
    """For a schedule that has made the rate small long before the end."""
    rates = case.survey.get("rates", {})
    first = rates.get("first", 0.0)
    if case.exploded or not rates.get("lowest", math.inf) < FLOOR * first:
        return
    early = rates["usual"] < FLOOR * first
    yield Remedy(
        name=f"lr never below {FLOOR:g} x its first",
        plan={"lr_floor": FLOOR},
        serves=("lr_too_small", "loop_mistake"),
        safety="tuning",
        intrusiveness=0.1,
        advice=f"bound the schedule at {FLOOR:g} times the learning rate of the first step; is it called too often?",
        lead=KEPT_UP if early else None,
        family="lr_floor",
    )


def decay(case: Case) -> Iterator[Remedy]:
    """For a run that learns, and is too noisy at its end to learn well."""
    steps = case.facts.steps
    if case.exploded or steps < MANY:
        return
    yield Remedy(
        name="lr decays to 2 %",
        plan={"lr_decay": steps},
        serves=("lr_too_large", "momentum_too_large"),
        safety="tuning",
        intrusiveness=0.1,
        advice=f"let the learning rate fall in a line to 2 % over the last half of the {steps} steps",
        family="decay",
    )


def _rate(case: Case, factor: float) -> str:
    lr = case.facts.lr
    return f", to {lr * factor:.3g}" if math.isfinite(lr) and lr > 0 and case.facts.optimizers == 1 else ""
