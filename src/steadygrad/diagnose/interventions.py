"""One thing changed, and the run repeated: which change speaks for which cause, and what its outcome is worth.

Pure: the changes are carried out by :mod:`steadygrad.integrations.trial`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.verdict import Verdict
from steadygrad.diagnose.vote import MANY
from steadygrad.records import Cause

LIKELY = 0.05  # causes below this probability are not tried
BETTER = 0.65  # a run has recovered if it ends below this part of the twin's level
NOT_RECOVERED = -1.5  # log-odds that a change which did not help adds to its causes
HARDLY = -0.5  # the same of a change that often cannot help: an operation may fail in every batch
HIGH_MOMENTUM = 0.9
SPIKE = 20.0  # times the median norm of the last 50 steps
CLIP = 1.5  # times the healthy norm
USUAL_CLIP = 1.0  # where no healthy norm is known: the run was wrong from its first steps
HEALTHY = 10  # steps that make a healthy norm
LEARNED = 0.1  # by which the loss must have fallen, or no norm was healthy
NEVER_WELL = ("stuck", "flat", "idle", "ambiguous", "worse")  # runs that have no healthy norm
WARMUP_SHARE, WARMUP_STEPS = 0.2, 100

Plan = Mapping[str, float]


@dataclass(frozen=True)
class Intervention:
    """One change to a run.

    The keys of ``plan``:

    ======================  ====================================================================================
    ``skip_nonfinite``      1: a step whose loss or gradient is not finite is not taken
    ``skip_above``          nor is one whose gradient norm is so many times the median of the last 50
    ``gradient_factor``     every backward pass is multiplied by it, as if the loss were
    ``zero_gradients``      1: gradients are set to 0 after each step
    ``train_mode``          1: forward passes with gradients run in training mode
    ``standardise_inputs``  1: what the first layers are given is brought to mean 0 and deviation 1
    ``momentum``            momentum, or the first beta, is lowered to it
    ``beta2``               the second beta is set to it
    ``warmup_steps``        the rate rises from 0 over so many steps
    ``lr_factor``           the rate is multiplied by it
    ``clip_norm``           the gradient is clipped to this joint norm
    ======================  ====================================================================================
    """

    name: str
    causes: tuple[str, ...]  # most likely first
    plan: Plan = field(default_factory=dict)
    weight: float = 1.0  # log-odds that a recovery adds to these causes: more for a more specific change
    miss: float = NOT_RECOVERED  # log-odds that it adds where the run does not recover

    @property
    def cause(self) -> str:
        return self.causes[0]


@dataclass(frozen=True)
class Outcome:
    """How a run went, the twin or an arm."""

    verdict: Verdict
    failed: float  # probability, as :func:`steadygrad.diagnose.causes.failed` gives it
    skipped: float = 0.0  # share of the steps that the change did not let through


@dataclass(frozen=True)
class Arm:
    """A run with one thing changed; ``outcome`` None: it came to no end (time-out, an error)."""

    intervention: Intervention
    outcome: Outcome | None
    recovered: bool = False
    note: str = ""  # why there is no outcome


# A change that is worth much cures one cause and hardly any other; a lower rate or a clip helps against many.
# The order is that of science.md section 3, the sizes are set by hand: not calibrated.
SKIP, FACTOR, LOOP, INPUTS, MOMENTUM, BETA2, WARMUP, RAISED_LR, LR, MUCH_LOWER_LR, CLIPPED = (
    4.0, 4.0, 4.0, 3.0, 2.5, 2.5, 2.0, 3.0, 1.5, 1.0, 1.0,
)  # fmt: skip


def choose(causes: Sequence[Cause], facts: Facts, most: int = 4) -> list[Intervention]:
    """The changes that can tell the likely causes apart: one for each, most likely cause first, then further ones.

    Args:
        causes: ranked; those of a probability above 0.05 are tried.
        facts: of the run that is to be repeated.
        most: number of changes at most.

    Example:
        >>> lr = Cause("lr_too_large", 0.6, "model", (), (), "")
        >>> [change.name for change in choose([lr], Facts())]
        ['lr / 10', 'lr / 100']
    """
    likely = [c for c in sorted(causes, key=lambda c: -c.probability) if c.probability > LIKELY]
    served = [_serving(cause, facts) for cause in likely]
    first = [change for changes in served for change in changes[:1]]
    chosen: dict[tuple[tuple[str, float], ...], Intervention] = {}
    for change in [*first, *(change for changes in served for change in changes[1:])]:
        key = tuple(sorted(change.plan.items()))
        if key in chosen:
            change = replace(change, causes=(*chosen[key].causes, change.cause))
        elif len(chosen) >= most:
            continue
        chosen[key] = change
    return list(chosen.values())


def _serving(cause: Cause, facts: Facts) -> list[Intervention]:
    make = SERVING.get(cause.cause)
    return make(cause, facts) if make is not None else []


def _bad_batch(cause: Cause, facts: Facts) -> list[Intervention]:
    plan = {"skip_nonfinite": 1.0, "skip_above": SPIKE}
    return [Intervention("skip odd steps", (cause.cause,), plan, SKIP)]


def _unsafe_op(cause: Cause, facts: Facts) -> list[Intervention]:
    return [Intervention("skip non-finite steps", (cause.cause,), {"skip_nonfinite": 1.0}, SKIP, HARDLY)]


def _reduction(cause: Cause, facts: Facts) -> list[Intervention]:
    terms = facts.portrait.terms if facts.portrait is not None else ()
    weight = max((t.weight for t in terms if math.isfinite(t.weight)), default=1.0) * facts.num_backwards
    if not weight >= MANY:
        return []
    plan = {"gradient_factor": 1 / weight}
    return [Intervention(f"loss / {weight:.3g}", (cause.cause,), plan, FACTOR)]


def _loop(cause: Cause, facts: Facts) -> list[Intervention]:
    out = []
    if "M101" in cause.supporting:
        out.append(Intervention("zero_grad", (cause.cause,), {"zero_gradients": 1.0}, LOOP))
    if "M103" in cause.supporting:
        out.append(Intervention("train mode", (cause.cause,), {"train_mode": 1.0}, LOOP))
    return out


def _inputs(cause: Cause, facts: Facts) -> list[Intervention]:
    if facts.optimizers > 1:  # a discriminator's real and made inputs would be scaled apart
        return []
    return [Intervention("inputs standardised", (cause.cause,), {"standardise_inputs": 1.0}, INPUTS)]


def _momentum(cause: Cause, facts: Facts) -> list[Intervention]:
    momentum = max(facts.momentum, facts.betas[0] if facts.betas is not None else 0.0)
    if not momentum > HIGH_MOMENTUM:
        return []
    return [Intervention("momentum 0.5", (cause.cause,), {"momentum": 0.5}, MOMENTUM)]


def _beta2(cause: Cause, facts: Facts) -> list[Intervention]:
    if facts.betas is None or not facts.betas[1] > 0.95:
        return []
    return [Intervention("beta2 0.95", (cause.cause,), {"beta2": 0.95}, BETA2)]


def _warmup(cause: Cause, facts: Facts) -> list[Intervention]:
    steps = max(1, min(WARMUP_STEPS, round(WARMUP_SHARE * facts.steps)) if facts.steps else WARMUP_STEPS)
    plan = {"warmup_steps": float(steps)}
    return [Intervention(f"warm-up of {steps} steps", (cause.cause,), plan, WARMUP)]


def _lower_lr(cause: Cause, facts: Facts) -> list[Intervention]:
    return [
        Intervention("lr / 10", (cause.cause,), {"lr_factor": 0.1}, LR),
        Intervention("lr / 100", (cause.cause,), {"lr_factor": 0.01}, MUCH_LOWER_LR),
    ]


def _higher_lr(cause: Cause, facts: Facts) -> list[Intervention]:
    return [
        Intervention(f"lr x {factor:g}", (cause.cause,), {"lr_factor": factor}, RAISED_LR)
        for factor in (10.0, 100.0)
    ]


def _clip(cause: Cause, facts: Facts) -> list[Intervention]:
    learned = facts.loss_first - facts.loss_best > LEARNED * abs(facts.loss_first)
    learned &= facts.verdict is None or facts.verdict.kind not in NEVER_WELL
    known = learned and facts.healthy_steps >= HEALTHY and 0 < facts.norm_before < math.inf
    norm = CLIP * facts.norm_before if known else USUAL_CLIP
    return [Intervention(f"clip at {norm:.3g}", (cause.cause,), {"clip_norm": norm}, CLIPPED, HARDLY)]


SERVING: dict[str, Callable[[Cause, Facts], list[Intervention]]] = {
    "bad_batch": _bad_batch,
    "unsafe_op": _unsafe_op,
    "loss_reduction": _reduction,
    "loop_mistake": _loop,
    "unscaled_inputs": _inputs,
    "momentum_too_large": _momentum,
    "stale_second_moment": _beta2,
    "warmup_missing": _warmup,
    "lr_too_large": _lower_lr,
    "lr_too_small": _higher_lr,
    "recurrent_growth": _clip,
    "attention_logit_growth": _clip,
}


def recovered(twin: Outcome, arm: Outcome) -> bool:
    """Whether the change made a failing run train, judged against the unchanged one.

    The arm's own verdict must not be a failure, most of its steps must have been taken, and its loss must end below
    .65 of the twin's level: of the lowest of where the twin began, where it ended, and a constant prediction.
    """
    if arm.verdict.fails >= 0.5 or arm.verdict.kind == "unknown" or arm.skipped > 0.5:
        return False
    known = [x for x in (twin.verdict.start, twin.verdict.end, twin.verdict.trivial) if math.isfinite(x)]
    level = min(known, default=math.nan)
    return arm.verdict.end < level - (1 - BETTER) * abs(level)


def confirm(
    causes: Sequence[Cause], twin: Outcome, arms: Iterable[tuple[Intervention, Outcome | None]]
) -> list[Cause]:
    """Rank the causes anew, from what the changed runs have come to.

    In the form of odds against "none of these", a cause is raised by the weight of the most specific change that made
    the run train, and lowered where none of its changes did. A cause that has no change keeps its odds.

    Args:
        causes: of the twin, ranked.
        twin: how the unchanged run went. One that did not fail has no causes.
        arms: each change with how the run went under it; None where that is not known, which says nothing.
    """
    if twin.failed < 0.5:
        return []
    told = [(change, outcome) for change, outcome in arms if outcome is not None]
    rest = max(1e-6, 1 - sum(c.probability for c in causes))
    odds, messages = [], []
    for cause in causes:
        tried = [(change, outcome) for change, outcome in told if cause.cause in change.causes]
        helped = [(change, outcome) for change, outcome in tried if recovered(twin, outcome)]
        missed = min((change.miss for change, _ in tried), default=0.0)
        gain = max((change.weight for change, _ in helped), default=missed)
        odds.append(cause.probability / rest * math.exp(gain))
        messages.append(_said(twin, tried, helped))
    total = 1 + sum(odds)
    ranked = [
        replace(cause, probability=o / total, message="; ".join(filter(None, (cause.message, said))))
        for cause, o, said in zip(causes, odds, messages, strict=True)
    ]
    return sorted(ranked, key=lambda c: (-c.probability, c.cause))


Tried = Sequence[tuple[Intervention, Outcome]]


def _said(twin: Outcome, tried: Tried, helped: Tried) -> str:
    if not tried:
        return ""
    change, outcome = max(helped or tried, key=lambda pair: pair[0].weight)
    losses = f"(loss {outcome.verdict.end:.3g}, the twin {twin.verdict.end:.3g})"
    if helped:
        return f"confirmed: with {change.name} the run trains {losses}"
    return f"not confirmed: with {' or '.join(c.name for c, _ in tried)} it does not train {losses}"
