"""From findings to causes: what most likely went wrong, with what speaks for and against it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from steadygrad.diagnose.advice import ADVICE
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.risk import START, risk
from steadygrad.diagnose.vote import FactVote
from steadygrad.diagnose.votes import FACT_VOTERS, FINDING_VOTES
from steadygrad.records import Cause, Finding
from steadygrad.rules import RULES

EARLY_WEIGHT = 0.5
ALWAYS = frozenset({"L100", "M101", "M102", "M108", "M112"})  # told even if the run goes well
# Of the log-odds, fitted on the families of the zoo that are not blind (benchmarks/diagnosis.py --fit), a little
# towards doubt: thresholds were set on those families, and new ones are harder.
PRIOR = -1.0  # of a cause that nothing speaks for, against "none of these"
SHARPNESS = 1.4  # of the votes together
INFO = 0.5  # weight of a finding that was only recorded, by a rule that can say more
MIN_PROBABILITY = 0.02
INFO_ONLY = {rule.code for rule in RULES if rule.severity == "info"}


@dataclass
class Case:
    """What was said about one cause."""

    votes: float = 0.0
    findings: list[tuple[float, Finding]] = field(default_factory=list)
    facts: list[FactVote] = field(default_factory=list)


def diagnose(findings: Iterable[Finding], facts: Facts, *, acted: bool = False) -> list[Cause]:
    """Why a run went wrong; empty if it did not.

    A run that failed by its own verdict has causes, and one in which the guard had to act, or in which something was
    wrong that is almost never meant (a NaN loss, gradients that are never zeroed). What looks alarming and recovers by
    itself has none: edges of stability, noise, spikes, growing losses.

    Args:
        findings: all of the run.
        facts: at its incident, or at its end.
        acted: the guard did something.
    """
    told = list(findings)
    well = facts.verdict is not None and facts.verdict.kind in ("ok", "learned")
    struck = any(f.severity != "info" and (f.code in ALWAYS or not well) for f in told)
    if not acted and not struck and failed(told, facts) < 0.5:
        return []
    return rank_causes(told, facts)


def failed(findings: Iterable[Finding], facts: Facts) -> float:
    """Probability that a run has failed, from its verdict and from what its first steps were like.

    A run whose loss says little (somewhere between a constant prediction and a good one) has failed more likely if its
    first step was odd. Log-odds add up, those of the first steps with half their weight.
    """
    if facts.verdict is None:
        return 0.0
    odds = _logit(facts.verdict.fails) + EARLY_WEIGHT * (_logit(risk(findings, facts)) - START)
    return 1 / (1 + math.exp(-odds))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def rank_causes(findings: Iterable[Finding], facts: Facts) -> list[Cause]:
    """Rank the causes of what was found, most likely first.

    Each code votes once, with its strongest finding; the facts vote as well; the votes of a cause add up to a
    score s, and

        p(cause) = exp(s) / (1 + sum over causes of exp(s)),    s = -1 + 1.4 sum of votes

    so that the probabilities sum to less than 1: the rest is "none of these". The weights are set by hand, the two
    constants are fitted; how often a cause with such a probability is right is measured in docs/diagnosis.md.

    Args:
        findings: those of the incident, or of the whole run.
        facts: what else is known; unknown fields say nothing.

    Example:
        >>> from steadygrad.records import Finding
        >>> grew = Finding("G102", "trend_to_overflow", 9, "rnn.weight_hh_l0", "gradient norm 1 -> 1e8")
        >>> rank_causes([grew], Facts(module_types=("RNN", "Linear")))[0].cause
        'recurrent_growth'
    """
    cases = hear(findings, facts)
    scores = {name: math.exp(PRIOR + SHARPNESS * case.votes) for name, case in cases.items()}
    total = 1 + sum(scores.values())
    ranked = [_cause(name, case, scores[name] / total) for name, case in cases.items()]
    ranked = [c for c in ranked if c.probability >= MIN_PROBABILITY]
    return sorted(ranked, key=lambda c: (-c.probability, c.cause))


def hear(findings: Iterable[Finding], facts: Facts) -> dict[str, Case]:
    """All that is said for and against each cause of which anything is said."""
    told = list(findings)
    strongest = _strongest(told)
    cases: dict[str, Case] = defaultdict(Case)
    for code, (factor, finding) in strongest.items():
        for cause, weight in FINDING_VOTES.get(code, {}).items():
            cases[cause].votes += factor * weight
            cases[cause].findings.append((factor * weight, finding))
    codes = set(strongest)
    for voter in FACT_VOTERS:
        for vote in voter(facts, codes, told):
            cases[vote.cause].votes += vote.weight
            cases[vote.cause].facts.append(vote)
    return dict(cases)


def _strongest(findings: Iterable[Finding]) -> dict[str, tuple[float, Finding]]:
    best: dict[str, tuple[float, Finding]] = {}
    for f in findings:
        factor = INFO if f.severity == "info" and f.code not in INFO_ONLY else 1.0
        if f.code not in best or factor > best[f.code][0]:
            best[f.code] = (factor, f)
    return best


def _cause(name: str, case: Case, probability: float) -> Cause:
    what, advice = ADVICE[name]
    case.findings.sort(key=lambda pair: -pair[0])
    supporting = [f for weight, f in case.findings if weight > 0]
    reasons = [v.because for v in sorted(case.facts, key=lambda v: -v.weight) if v.weight > 0]
    reasons += [f.message for f in supporting]
    where = next((v.where for v in case.facts if v.where), "")
    where = where or next((f.where for f in supporting if f.where not in ("loss", "model")), "")
    return Cause(
        cause=name,
        probability=probability,
        where=where or (supporting[0].where if supporting else "model"),
        supporting=tuple(f.code for f in supporting),
        contradicting=tuple(f.code for weight, f in case.findings if weight < 0),
        advice=advice,
        message=what + (": " + "; ".join(dict.fromkeys(reasons[:3])) if reasons else ""),
    )
