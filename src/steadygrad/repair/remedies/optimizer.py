"""The optimizer: its momentum, its second moment, its weight decay, or another one."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

LOW_MOMENTUM = 0.5
LONG_MEMORY = 0.95  # beta2 above which a lower one is another optimizer
HALF_EPS = 1e-4
STRONG_DECAY = 0.01  # part of a weight that is taken in one step
MUCH_DECAY = 0.2  # twenty times what AdamW has
FAILED = 0.6  # lead: of the yardstick, at most
ADAM_SERVES = (
    "lr_too_large",
    "lr_too_small",
    "loss_reduction",
    "unscaled_targets",
    "vanishing",
    "bootstrapped_target",
)
SGD_SERVES = ("stale_second_moment", "low_precision", "lr_too_large")


def momentum(case: Case) -> Iterator[Remedy]:
    facts = case.facts
    now = max(facts.momentum, facts.betas[0] if facts.betas is not None else 0.0)
    if now > LOW_MOMENTUM:
        yield Remedy(
            name=f"momentum {LOW_MOMENTUM:g}",
            plan={"momentum": LOW_MOMENTUM},
            serves=("momentum_too_large", "lr_too_large"),
            safety="tuning",
            intrusiveness=0.12,
            advice=f"use momentum {LOW_MOMENTUM:g} instead of {now:g}"
            if facts.betas is None
            else f"use betas[0] = {LOW_MOMENTUM:g} instead of {now:g}",
            family="momentum",
        )


def second_moment(case: Case) -> Iterator[Remedy]:
    facts = case.facts
    if facts.betas is not None and facts.betas[1] > LONG_MEMORY:
        yield Remedy(
            name="beta2 0.95",
            plan={"beta2": 0.95},
            serves=("stale_second_moment", "data_shift"),
            safety="tuning",
            intrusiveness=0.12,
            advice=f"use betas[1] = 0.95 instead of {facts.betas[1]:g}",
            family="beta2",
        )
        yield Remedy(
            name="beta2 0.95, clip at 1",
            plan={"beta2": 0.95, "clip_norm": 1.0},
            serves=("stale_second_moment",),
            safety="tuning",
            intrusiveness=0.15,
            advice=f"use betas[1] = 0.95 instead of {facts.betas[1]:g}, and clip the gradient norm at 1",
            family="beta2",
        )


def adam_eps(case: Case) -> Iterator[Remedy]:
    """In half precision Adam's eps is 0, and a second moment of 0 divides."""
    facts = case.facts
    if facts.adaptive and facts.in_half and not facts.eps >= HALF_EPS:
        yield Remedy(
            name=f"eps {HALF_EPS:g}",
            plan={"adam_eps": HALF_EPS, "skip_nonfinite": 1},
            serves=("low_precision",),
            safety="tuning",
            intrusiveness=0.1,
            advice=f"use eps={HALF_EPS:g} in {facts.optimizer}: 1e-8 is 0 in float16",
            lead=FAILED,
            family="eps",
        )


def weight_decay(case: Case) -> Iterator[Remedy]:
    """Where it takes a good part of the weights in a step, or holds them near 0."""
    facts = case.facts
    if not (facts.weight_decay * facts.lr > STRONG_DECAY or facts.weight_decay >= MUCH_DECAY):
        return
    yield Remedy(
        name="no weight decay",
        plan={"weight_decay": 0.0},
        serves=("vanishing", "lr_too_large", "lr_too_small"),
        safety="tuning",
        intrusiveness=0.15,
        advice=f"use weight_decay=0 instead of {facts.weight_decay:g}",
        family="weight_decay",
    )


def other_optimizer(case: Case) -> Iterator[Remedy]:
    """Adam for what no other has tamed; SGD where Adam's own memory may be what is wrong."""
    facts = case.facts
    if not facts.adaptive:
        kinds = [("Adam", 1e-3), ("Adam", 1e-2)]
    else:
        kinds = [("SGD", 1e-2)]
    for name, lr in kinds:
        settings = {"name": name, "lr": lr}
        if name == "SGD":
            settings["momentum"] = 0.9
        if facts.weight_decay:
            settings["weight_decay"] = facts.weight_decay
        more = ", ".join(f"{k}={v:g}" for k, v in settings.items() if isinstance(v, float))
        yield Remedy(
            name=f"{name} at {lr:g}",
            plan={"optimizer": settings},
            serves=ADAM_SERVES if name == "Adam" else SGD_SERVES,
            safety="tuning",
            intrusiveness=0.3,
            advice=f"use torch.optim.{name}(..., {more}) instead of {facts.optimizer or 'the optimizer'}",
            family="optimizer",
        )
