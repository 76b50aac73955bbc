"""What the end of a run says about causes: how it failed, where the first bad value came from, how long its steps."""

from __future__ import annotations

import math

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.verdict import target_growth
from steadygrad.diagnose.vote import MANY, FactVote, of_code
from steadygrad.records import Finding

STRUCTURE = frozenset({"F101", "F102", "F105", "F106"})
GROWING = frozenset({"F101", "F102", "F104", "F107", "F108", "D101"})
LOST = 1e-6  # an update of this share of the weight does nothing
LONG = 0.1
GROWN = 5.0
ALIVE = 1e-3  # gradient norm: below it is not the rate that holds a net still


def first_bad_value(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """The operation that made the first NaN or infinity."""
    found = facts.located
    if found is None:
        return []
    where = f"{found.file}:{found.line}" if found.line else found.module
    if "float16" in found.detail or found.op == "to_copy":
        return [FactVote("low_precision", 4.5, found.detail, where)]
    if found.kind == "data" and facts.optimizers > 1:
        return [
            FactVote("unsafe_op", 0.5, f"{found.detail}; another optimizer's net may have made it", where)
        ]
    if found.kind == "data":
        return [FactVote("bad_batch", 4.0, found.detail, where), FactVote("unsafe_op", -1.0, found.detail)]
    if found.kind == "optimizer":
        return [FactVote("low_precision", 2.5 if facts.half else 0.5, found.detail, where)]
    unsound = any(f.code in GROWING and f.step <= 2 * (f.code == "F104") for f in findings)
    if facts.had_grown or facts.blowing_up or unsound:
        text = f"{found.detail}; what it was given had grown before"
        return [FactVote("unsafe_op", -1.5 if unsound else 0.5, text, where)]
    one = 1.0 if facts.healthy_steps >= 5 and facts.one_step_only else 0.0
    return [FactVote("unsafe_op", 2.5, found.detail, where), FactVote("bad_batch", one, found.detail, where)]


def lengths_of_steps(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """Steps against the size of the weights, in a run that has come to nothing."""
    verdict = facts.verdict
    if verdict is None or verdict.kind not in ("stuck", "flat", "worse", "ambiguous", "exploded"):
        return []
    votes = []
    if codes & {"M105", "M111"}:
        pass
    elif facts.update_ratio < LOST and verdict.kind in ("stuck", "flat") and facts.norm_before > ALIVE:
        text = f"a step moves the weights by {facts.update_ratio:.1e} of their size"
        faded = any(f.step == 0 for f in of_code(findings, "F103", "F104", "F105", "F109"))
        votes.append(FactVote("lr_too_small", 0.5 if faded else 3.0, text))
    elif verdict.kind in ("stuck", "flat") and facts.update_ratio_last < LOST and facts.norm_before > ALIVE:
        text = f"late steps move the weights by {facts.update_ratio_last:.1e} of their size"
        votes.append(FactVote("lr_too_small", 1.0, text))
    elif facts.update_ratio > 100 * LOST:
        votes.append(
            FactVote(
                "lr_too_small", -2.0, f"a step moves the weights by {facts.update_ratio:.1e} of their size"
            )
        )
    if facts.update_ratio > LONG:
        text = f"the first steps moved the weights by {facts.update_ratio:.1e} of their size"
        votes.append(FactVote("lr_too_large", 2.0, text))
    if facts.loss_noise > 0.5 and verdict.kind in ("stuck", "ambiguous"):
        text = f"late losses jump by {facts.loss_noise:.0%} of their level from step to step"
        votes.append(FactVote("lr_too_large", 1.5, text))
        if facts.momentum > 0.8:
            votes.append(FactVote("momentum_too_large", 1.0, text))
    return votes


def without_bound(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    if facts.verdict is not None and facts.verdict.kind == "unbounded":
        return [FactVote("unbounded_objective", 4.0, facts.verdict.reason)]
    first = abs(facts.loss_first) if math.isfinite(facts.loss_first) else 1.0
    if facts.lowest < -20 * max(1.0, first) and facts.verdict is not None and facts.verdict.fails >= 0.5:
        text = f"the loss had fallen to {facts.lowest:.3g} before, from {facts.loss_first:.3g}"
        return [FactVote("unbounded_objective", 6.0, text)]
    return []


def after_the_first_step(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """What a net was not like in its first step, but in the ones after: the first updates did it."""
    portrait = facts.portrait
    if portrait is None or not portrait.layers:
        return []
    first = {f.code for f in findings if f.code in STRUCTURE and f.step == 0}
    later = [f for f in findings if f.code in STRUCTURE and 0 < f.step <= 10 and f.code not in first]
    if (
        not later
        or first
        or facts.num_backwards * max((t.weight for t in portrait.terms), default=1.0) >= MANY
    ):
        return []
    if any(f.step == 0 and f.code in GROWING for f in findings):
        return [FactVote("lr_too_large", 1.0, f"by step {later[0].step} {later[0].message}")]
    text = f"the first step was sound; by step {later[0].step} {later[0].message}"
    return [FactVote("lr_too_large", 3.5, text)]


def own_targets(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """A target that the model makes itself, in a run that climbs."""
    moves = of_code(findings, "M113")
    computed = [t for p in (facts.portrait, facts.at) if p is not None for t in p.terms if t.target_moves]
    climbs = codes & {"L101", "L104", "L105", "G101", "G102"} or (
        facts.verdict is not None and facts.verdict.kind in ("exploded", "worse", "nonfinite", "stuck")
    )
    grown = target_growth(facts.portrait, facts.last) if facts.had_grown or climbs else 1.0
    if not moves and not computed and not grown > GROWN:
        return [FactVote("bootstrapped_target", -4.0, "the targets are data")]
    if not climbs:
        return []
    text = moves[0].message if moves else "the targets are computed by the model itself"
    if grown > GROWN:
        text = f"the targets have grown x{grown:.3g} together with the loss"
    return [FactVote("bootstrapped_target", 3.5, text)]


def nothing_in_the_net(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """It blew up, and nothing was wrong with the first step: what is left is how far the steps go."""
    early = facts.healthy_steps < 60
    if any(t.weight >= MANY for t in (facts.portrait.terms if facts.portrait is not None else ())):
        return []
    structural = codes & {"F101", "F102", "F104", "F105", "F106", "F108", "D101", "D102", "M101", "M110"}
    grew = codes & {"G101", "G102", "G103", "L101", "L104", "L105", "L107"} or facts.had_grown
    if not (grew and early and not structural) or facts.portrait is None or not facts.portrait.layers:
        return []
    return [
        FactVote(
            "lr_too_large", 1.5, "signals and gradients of the first step were of a good size in every layer"
        )
    ]


def over_the_limit(facts: Facts, codes: set[str], findings: list[Finding]) -> list[FactVote]:
    """The learning rate against the sharpness of the first step."""
    ratio = facts.lr_over_limit
    weight = max(
        (t.weight for t in (facts.portrait.terms if facts.portrait is not None else ())), default=1.0
    )
    if math.isnan(ratio) or weight * facts.num_backwards >= MANY:
        return []
    if ratio > 1:
        text = f"the learning rate is {ratio:.3g} times the largest stable one of the first step"
        explained = any(f.step == 0 and f.code[0] in "FD" for f in findings)
        weight = min(3.0, 1.0 + 2 * math.log10(ratio))
        return [FactVote("lr_too_large", 0.3 * weight if explained else weight, text)]
    return [FactVote("lr_too_large", -0.5, f"the learning rate is {ratio:.2g} of the largest stable one")]
