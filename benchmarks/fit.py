"""Constants of forecast and diagnosis, refitted: suggestions on paper, nothing is changed.

Only for rows of families that are not blind. Both fits keep the form that the package uses, so that their constants
can be put in its place; both print how often the constant spoke, for one that rests on two runs is no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.zoo_runs import Row, facts_of, findings_of
from steadygrad.diagnose import causes as ranking
from steadygrad.diagnose import risk as risks
from steadygrad.diagnose.facts import Facts
from steadygrad.records import Finding

PULL = 0.02  # L2, a weight of 4 costs a third of a nat
Case = tuple[Mapping[str, float], Sequence[str]]  # votes of each cause, and the causes that count as right


# ---------------------------------------------------------------------- forecast
def fit_forecast(rows: Iterable[tuple[Row, bool]]) -> dict[str, float]:
    """Logistic regression on the signs of (row, failed), L2 and no negative weight; prints and returns the constants.

    The strongest sign of a run counts in full and every other a quarter, as in the package.
    """
    from scipy.optimize import minimize

    known = [
        (risks.signs(findings_of(row), facts), failed)
        for row, failed in rows
        if (facts := facts_of(row)) is not None
    ]
    names = sorted({s for found, _ in known for s in found})
    present = np.array([[n in found for n in names] for found, _ in known], dtype=float).reshape(
        -1, len(names)
    )
    failed = np.array([f for _, f in known], dtype=float)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean log loss with the pull on the weights, and its gradient."""
        weighed = present * w[1:]
        share = risks.FURTHER * present
        if names:
            strongest = weighed.argmax(1)
            rows_ = np.arange(len(known))
            share[rows_, strongest] = present[rows_, strongest]
        odds = w[0] + (share * w[1:]).sum(1)
        value = np.logaddexp(0, odds) - failed * odds
        error = 1 / (1 + np.exp(-odds)) - failed
        gradient = np.concatenate([[error.sum()], (error[:, None] * share).sum(0) + 2 * PULL * w[1:]])
        return float(value.sum() + PULL * (w[1:] ** 2).sum()), gradient

    start = np.array([risks.START, *(max(found.get(n, 0.0) for found, _ in known) for n in names)])
    bounds = [(None, None)] + [(0.0, None)] * len(names)
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    print(
        f"{len(known)} runs, {int(failed.sum())} fail; loss {loss(start)[0]:.2f} now, {loss(fitted)[0]:.2f} fitted"
    )
    print(
        f"{'sign':12}{'now':>8}{'fitted':>8}{'failing':>9}{'good':>6}\n{'START':12}{start[0]:8.2f}{fitted[0]:8.2f}"
    )
    for i, name in enumerate(names):
        bad, all_ = int((present[:, i] * failed).sum()), int(present[:, i].sum())
        print(f"{name:12}{start[i + 1]:8.2f}{fitted[i + 1]:8.2f}{bad:9}{all_ - bad:6}")
    return {"START": float(fitted[0]), **{n: float(x) for n, x in zip(names, fitted[1:], strict=True)}}


# ---------------------------------------------------------------------- diagnosis
def votes(findings: Sequence[Finding], facts: Facts) -> dict[str, float]:
    """The sum of the votes of each cause that has any, without the prior."""
    return {name: case.votes for name, case in ranking.hear(findings, facts).items()}


def log_loss(cases: Iterable[Case], temperature: float, prior: float) -> float:
    """Mean -log of the probability that the true causes have together; a cause without a vote has e^-9."""
    losses = []
    for scores, right in cases:
        weights = {c: math.exp(temperature * s + prior) for c, s in scores.items()}
        p = sum(weights.get(c, 0.0) for c in right) / (1 + sum(weights.values()))
        losses.append(-math.log(max(p, math.exp(-9))))
    return sum(losses) / len(losses) if losses else math.nan


def fit_diagnosis(rows: Iterable[tuple[Row, Sequence[str]]]) -> tuple[float, float]:
    """SHARPNESS and PRIOR with the least log loss on (row, true causes); prints and returns them."""
    from scipy.optimize import minimize

    cases: list[Case] = [
        (votes(findings_of(row), facts), right) for row, right in rows if (facts := facts_of(row)) is not None
    ]
    if not cases:
        raise SystemExit("no failing run was told of: nothing to fit")
    found = minimize(
        lambda x: log_loss(cases, *x), np.array([ranking.SHARPNESS, ranking.PRIOR]), method="Nelder-Mead"
    )
    temperature, prior = map(float, found.x)
    unheard = sum(not set(right) & scores.keys() for scores, right in cases)
    print(f"{len(cases)} failing runs with a cause told; {unheard} in which nothing votes for the true one")
    print(
        f"now     SHARPNESS {ranking.SHARPNESS:4.2f}  PRIOR {ranking.PRIOR:5.2f}  log loss "
        f"{log_loss(cases, ranking.SHARPNESS, ranking.PRIOR):.3f}"
    )
    print(f"fitted  SHARPNESS {temperature:4.2f}  PRIOR {prior:5.2f}  log loss {found.fun:.3f}")
    return temperature, prior
