"""How a run went: whether there is anything to diagnose. A healthy run has no causes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steadygrad.diagnose.course import Course
from steadygrad.records import Portrait

Kind = Literal[
    "ok",
    "nonfinite",
    "stopped",
    "nan_loss",
    "exploded",
    "unbounded",
    "worse",
    "stuck",
    "flat",
    "ambiguous",
    "idle",
    "learned",
    "unknown",
]

MIN_STEPS = 30  # a shorter run has had no chance to learn
STUCK = 0.05  # progress over the trivial predictor below which a run is stuck; repair.md section 2
GOOD = 0.7
MOVED = 3.0  # targets that grow by more are no data, and no yardstick
EXPLAINED = 0.1  # terms that miss the loss by more are not all of it
# How often a run with this verdict really fails; benchmarks/diagnosis.py
FAILS: dict[str, float] = {
    "nonfinite": 0.99,
    "stopped": 0.97,
    "nan_loss": 0.95,
    "exploded": 0.95,
    "unbounded": 0.9,
    "worse": 0.4,  # without a yardstick a rise is no failure by itself: policies and critics do
    "stuck": 0.9,
    "flat": 0.9,
    "ambiguous": 0.3,
    "idle": 0.3,
    "unknown": 0.1,
    "ok": 0.03,
    "learned": 0.005,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to, judged by its own loss."""

    kind: Kind
    progress: float  # 1 - loss / loss of the best constant prediction; nan where there is none
    start: float
    end: float
    trivial: (
        float  # the loss of the best constant prediction, in the units of the loss; nan where there is none
    )
    reason: str  # a sentence

    @property
    def fails(self) -> float:
        """How often runs with this verdict fail."""
        return FAILS[self.kind]


def judge(
    course: Course,
    portraits: Sequence[Portrait],
    *,
    poisoned: bool = False,
    stopped: bool = False,
    optimizers: int = 1,
) -> Verdict:
    """Judge a run.

    The yardstick is the trivial predictor: the best prediction that does not look at the input (class prior, mean of
    the targets). A run that ends at it is stuck, whatever its gradients say. Where a loss has no such value (a critic,
    a policy, a bootstrapped target, a likelihood), only its own start is left to compare with.

    Args:
        course: the losses.
        portraits: those of the run, oldest first; their loss terms carry the trivial values.
        stopped: the guard gave the run up.
        poisoned: a parameter is not finite at the end.
        optimizers: how many took turns. With several (a GAN) a loss at its trivial value may be what is wanted.
    """
    start, end = course.start, course.end
    progress, trivial = _progress(course, portraits) if optimizers == 1 else (math.nan, math.nan)

    def verdict(kind: Kind, reason: str) -> Verdict:
        return Verdict(kind, progress, start, end, trivial, reason)

    if poisoned:
        return verdict("nonfinite", "parameters are NaN or infinite at the end")
    if stopped:
        return verdict("stopped", "the guard stopped the run: nothing that it may do had helped")
    if course.steps and not course.finite_share >= 0.5:
        return verdict("nan_loss", "the loss is NaN or infinite at the end")
    if math.isnan(end) or course.steps < MIN_STEPS:
        return verdict("unknown", f"{course.steps} steps are too few to judge")
    # A policy's loss may begin at 0: what it moves by from step to step is its size then.
    size = max(abs(start), 3 * course.spread() if course.spread() > 0 else 0.0, 1e-12)
    if not math.isnan(progress):
        if progress < -9 and end > 10 * size or not math.isnan(trivial) and end > 10 * max(trivial, size):
            return verdict(
                "exploded", f"the loss ends {1 - progress:.3g} times as high as that of a constant prediction"
            )
        if progress < STUCK:
            return verdict("stuck", f"the loss ends at {1 - progress:.0%} of that of a constant prediction")
        kind: Kind = "ambiguous" if progress < GOOD else "learned"
        return verdict(kind, f"the loss is {progress:.0%} below that of a constant prediction")
    if end < -1000 * max(1.0, size):
        return verdict("unbounded", f"the loss falls without end: {start:.3g} -> {end:.3g}")
    if end > 3 * size and end > 0.1 * course.largest and end - start > size:
        return verdict("exploded", f"the loss ends {end / size:.3g} times as high as it began")
    if end > start + 0.3 * size + 0.1 and optimizers == 1:
        return verdict("worse", f"the loss has risen from {start:.3g} to {end:.3g}")
    if abs(end - start) < 1e-3 * size and not course.spread() > 1e-3 * size and optimizers == 1:
        return verdict("flat", f"the loss has not moved from {start:.3g}")
    if end > start - 0.02 * size and optimizers == 1:
        return verdict("idle", f"the loss began at {start:.3g} and ends at {end:.3g}")
    return verdict("ok", f"the loss went from {start:.3g} to {end:.3g}")


def _progress(course: Course, portraits: Sequence[Portrait]) -> tuple[float, float]:
    """Progress over the trivial predictor and the trivial loss; nan for what has none."""
    with_terms = [p for p in portraits if p.terms]
    if not with_terms:
        return math.nan, math.nan
    last = with_terms[-1].terms
    known = [t for t in last if t.trivial > 0 and not t.target_moves]
    if not known or any(t.target_moves for t in last) or target_growth(with_terms[0], with_terms[-1]) > MOVED:
        return math.nan, math.nan
    if len(known) == len(last) and _explains(with_terms[-1], course):
        trivial = sum(t.weight * t.trivial for t in last)
        return 1 - course.end / trivial, trivial
    # The loss holds more than these terms (a penalty, a policy): judge each by itself. One that is learned will do.
    late = with_terms[-max(1, len(with_terms) // 3) :]
    ratios = []
    for i, term in enumerate(last):
        values = sorted(p.terms[i].value for p in late if len(p.terms) == len(last))
        if term in known and values:
            ratios.append(1 - values[len(values) // 2] / term.trivial)
    return max(ratios, default=math.nan), math.nan


def target_growth(first: Portrait | None, last: Portrait | None) -> float:
    """Largest factor by which the targets of a term have grown; 1 if nothing is known."""
    if first is None or last is None or len(first.terms) != len(last.terms):
        return 1.0
    ratios = [
        b.target_rms / a.target_rms for a, b in zip(first.terms, last.terms, strict=True) if a.target_rms > 0
    ]
    return max((r for r in ratios if not math.isnan(r)), default=1.0)


def _explains(portrait: Portrait, course: Course) -> bool:
    """Whether the terms are all of the loss: compared with the loss of their own step, else with those of the end."""
    total = sum(t.weight * t.value for t in portrait.terms)
    margin = max(EXPLAINED * abs(total), 3 * course.spread())
    if not math.isnan(portrait.loss):
        return abs(total - portrait.loss) <= margin
    nearby = [x for x in course.tail if math.isfinite(x)]
    if math.isnan(total) or not nearby:
        return False
    return abs(total - course.end) <= max(margin, max(nearby) - min(nearby))
