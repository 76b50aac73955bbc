"""How likely a training is to fail, from what its first steps show."""

from __future__ import annotations

import math
from collections.abc import Iterable

from steadygrad.diagnose.facts import Facts
from steadygrad.records import Finding

# Differences in log-odds; fitted on the part of the zoo that is not blind (benchmarks/forecast.py --fit).
START = -3.0
WEIGHTS: dict[str, float] = {
    "L100": 2.0,
    "G100": 4.0,
    "P100": 6.0,
    "G101": 3.0,
    "G103": 3.0,
    "L101": 4.0,
    "L104": 2.0,
    "F101": 4.0,
    "F102": 4.0,
    "F103": 3.5,
    "F104": 4.0,
    "F105": 4.0,
    "F106": 3.5,
    "F107": 4.0,
    "F108": 3.5,
    "F109": 4.0,
    "D101": 3.5,
    "A101": 3.5,
    "M101": 4.0,
    "M102": 4.0,
    "M104": 4.0,
    "M105": 2.0,
    "M106": 3.2,
    "M107": 4.0,
    "M108": 4.0,
    "M109": 1.5,
    "M111": 4.0,
    "M112": 4.0,
}
FIRST = 0  # findings of the graph count up to this step: later ones describe a net that has begun to learn
LR_SGD = 4.0  # times the limit of a quadratic; science.md section 2
LR_ADAPTIVE = 4.0
FAR_SGD, FAR_ADAPTIVE = 16.0, 64.0  # beyond it the rate alone is enough, in a net without normalisation
LR_WEIGHT = 1.9
LATE = {"F101": 2.8, "F102": 2.0, "F105": 2.5, "F106": 2.5, "A101": 1.5}  # of a net that was sound at first
EARLY = 10
RISE = 3.0  # losses 5 to 9 over losses 0 to 2
RISE_WEIGHT = 3.5
RISE_UNKNOWN = 2.0  # where the curvature is not known
OUT = 0.2  # share of the targets that the output cannot reach
HEAVY = 0.97  # momentum; science.md section 2
FURTHER = 0.25  # share of every sign but the strongest
FALLS, FALLING = 0.5, 1.0
TINY = 1e-7  # update over weight


def cold_post_norm(facts: Facts) -> bool:
    """A deep post-norm net under an adaptive optimizer, whose very first steps are beyond what its curvature allows."""
    portrait = facts.portrait
    return bool(
        portrait is not None
        and portrait.post_normalised >= 4
        and facts.adaptive
        and facts.lr > facts.lr_limit
    )


def risk(findings: Iterable[Finding], facts: Facts) -> float:
    """Probability that a training fails, in [0, 1].

    The strongest sign counts in full, every further one a quarter: signs of one fault come together.
    """
    weights = sorted((w for w in signs(findings, facts).values() if w > 0), reverse=True)
    odds = START + sum(weights[:1]) + FURTHER * sum(weights[1:])
    return 1 / (1 + math.exp(-odds))


def signs(findings: Iterable[Finding], facts: Facts) -> dict[str, float]:
    """Each sign of trouble in the first steps, with its weight in log-odds; 0 for what says nothing by itself."""
    found = [f for f in findings if f.step < EARLY]
    out = {f.code: WEIGHTS.get(f.code, 0.0) for f in found if f.code[0] not in "FDA" or f.step <= FIRST}
    out |= {f"late {f.code}": LATE.get(f.code, 0.0) for f in found if f.step > FIRST and f.code not in out}
    if any(f.code == "M109" and f.evidence.get("out_of_range", 0.0) > OUT for f in found):
        out["M109"] = RISE_WEIGHT
    if "F106" in out and facts.rise < FALLS:
        out["F106"] = FALLING  # a loss that begins too high and comes down at once
    if cold_post_norm(facts):
        out["post norm"] = RISE_WEIGHT
    if facts.lr > 0 and facts.update_ratio < TINY:  # a rate of 0 is told of by itself, or none was given
        out["update"] = RISE_WEIGHT
    return out | _of_the_rate(facts)


def _of_the_rate(facts: Facts) -> dict[str, float]:
    """What speaks against the learning rate: the curvature, a loss that rises, a momentum that piles steps up."""
    ratio, bound = facts.lr_over_limit, LR_ADAPTIVE if facts.adaptive else LR_SGD
    out = {}
    if ratio > bound:
        # Normalised nets bear 30 times what their curvature says, and more.
        far = FAR_ADAPTIVE if facts.adaptive else FAR_SGD
        plain = facts.portrait is not None and not facts.portrait.normalised and ratio > far
        out["lr"] = RISE_WEIGHT if plain else LR_WEIGHT + min(1.0, math.log10(ratio / bound))
    if facts.rise > RISE and not ratio <= 1:
        out["rise"] = RISE_WEIGHT if ratio > 1 else RISE_UNKNOWN
    if facts.momentum > HEAVY and ratio > 1:
        out["momentum"] = RISE_WEIGHT
    return out
