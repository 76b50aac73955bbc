"""Bound the gradient, its entries, or the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

TIMES = 1.5  # the healthy norm
USUAL = 1.0  # where no healthy norm is known: the run was wrong from its first steps
HEALTHY = 10  # steps that make a healthy norm
LEARNED = 0.1  # by which the loss must have fallen, or no norm was healthy
NEVER_WELL = ("stuck", "flat", "idle", "ambiguous", "worse")
SERVES = ("recurrent_growth", "attention_logit_growth", "lr_too_large", "bad_batch", "init_gain_large")


def clip(case: Case) -> Iterator[Remedy]:
    """Clip the norm: at a level learned from the healthy steps, and at the usual one."""
    healthy = healthy_norm(case)
    levels = [USUAL, 0.1] if healthy is None else [_short(TIMES * healthy), USUAL]
    levels += [0.1] if case.facts.verdict is not None and case.facts.verdict.kind == "unbounded" else []
    for level in dict.fromkeys(levels):
        yield Remedy(
            name=f"clip at {level:.3g}",
            plan={"clip_norm": level},
            serves=(*SERVES, *(("unbounded_objective",) if level == 0.1 else ())),
            safety="tuning",
            intrusiveness=0.06 if level >= USUAL or healthy is not None else 0.1,
            advice=f"call torch.nn.utils.clip_grad_norm_(model.parameters(), {level:.3g}) before optimizer.step()",
            family="clip",
        )


def adaptive_clip(case: Case) -> Iterator[Remedy]:
    """Rules that follow a norm which drifts, and cut what sticks out of it."""
    facts = case.facts
    if not case.exploded or facts.healthy_steps < 2 * HEALTHY:
        return
    yield Remedy(
        name="clip by z-score",
        plan={"adaptive_clip": {"name": "ZClip"}},
        serves=("bad_batch", "data_shift", "stale_second_moment", "lr_too_large"),
        safety="tuning",
        intrusiveness=0.08,
        advice="clip with steadygrad.clip.ZClip before optimizer.step(): it cuts norms far above their moving average",
        family="clip",
    )


def update_clip(case: Case) -> Iterator[Remedy]:
    """StableAdamW, for gradients that outrun their second moment."""
    if case.facts.optimizer not in ("Adam", "AdamW"):
        return
    yield Remedy(
        name="updates clipped",
        plan={"update_clip": 1.0},
        serves=("stale_second_moment", "data_shift", "warmup_missing", "attention_logit_growth"),
        safety="tuning",
        intrusiveness=0.1,
        advice="step inside `with steadygrad.clip.clipped_updates(optimizer):`, which makes it StableAdamW",
        family="clip",
    )


def weight_clip(case: Case) -> Iterator[Remedy]:
    """Weights within bounds, for an objective that has none."""
    facts = case.facts
    if case.probability("unbounded_objective") <= 0:
        return
    which: tuple[int | None, ...] = (None,) if facts.optimizers == 1 else (0, 1)
    for bound in (0.1, 0.01):
        for index in which:
            of = "" if index is None else f" of optimizer {index + 1}"
            yield Remedy(
                name=f"weights{of} within {bound:g}",
                plan={"weight_clip": {"max": bound} | ({} if index is None else {"optimizer": index})},
                serves=("unbounded_objective",),
                safety="surgery",
                intrusiveness=0.5,
                advice=f"clamp the weights{of} to [-{bound:g}, {bound:g}] after each step, or bound the objective",
                family="weight_clip",
            )


def healthy_norm(case: Case) -> float | None:
    """The gradient norm of the steps in which the run still learned; None if it never did."""
    facts = case.facts
    learned = facts.loss_first - facts.loss_best > LEARNED * abs(facts.loss_first)
    learned &= facts.verdict is None or facts.verdict.kind not in NEVER_WELL
    learned &= not case.exploded or case.failed_at is not None  # or it grew slowly, from the first step on
    known = learned and facts.healthy_steps >= HEALTHY and 0 < facts.norm_before < math.inf
    return facts.norm_before if known else None


def _short(level: float) -> float:
    """Two digits, as people write it."""
    return float(f"{level:.2g}")
