"""What a run is worth: its last losses against what a constant prediction would lose, in the script's own units."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steadygrad.diagnose.trial import TrialReport
from steadygrad.records import LossTerm

BEST = 0.02  # of the trivial loss: below it all runs are equally good
WORST_WEIGHT = 0.7  # of the worst part of a loss; the mean of the parts has the rest
INTRUSION = 0.3  # that a change of intrusiveness 1 adds to the logarithm of the loss
SKIPPED = 0.5  # share of skipped steps above which nothing was trained
FAILING = ("nonfinite", "stopped", "nan_loss", "exploded", "unbounded")
GOOD = math.log(0.3)  # 70 % below a constant prediction: the run has learned
BETTER = math.log(0.65)  # an improvement that is more than luck
LEARNED = math.log(0.8)  # the same where the untouched run has learned nothing at all


def level(run: TrialReport, twin: TrialReport) -> float:
    """How much a run has lost of what a constant prediction loses, as a logarithm: 0 has learned nothing.

    The median of the last tenth of the losses counts. A loss that is made of several known parts is judged by them,
    mostly by the worst: one huge part must not buy the verdict. A loss without a trivial value (a critic, a policy) is
    compared with the start of the untouched run. Infinite for a run that is not finite, has exploded, or was
    mostly skipped.

    Args:
        run: the run that is judged.
        twin: the untouched one, for the yardstick.
    """
    verdict, reference = run.facts.verdict, twin.facts.verdict
    assert verdict is not None and reference is not None
    if verdict.kind in FAILING or not math.isfinite(verdict.end):
        return math.inf
    if run.steps and run.skipped / run.steps > SKIPPED:
        return math.inf
    parts = _parts(run.terms)
    if parts:
        logs = [math.log(max(part, BEST)) for part in parts]
        return WORST_WEIGHT * max(logs) + (1 - WORST_WEIGHT) * sum(logs) / len(logs)
    if not math.isnan(verdict.progress):
        return math.log(max(1 - verdict.progress, BEST))
    if reference.trivial > 0:
        return math.log(max(verdict.end / reference.trivial, BEST))
    start = reference.start if math.isfinite(reference.start) else verdict.start
    if not math.isfinite(start):
        return 0.0
    size = max(abs(start), 1e-12)
    return math.log(max(1 + (verdict.end - start) / size, BEST))


def _parts(terms: Sequence[LossTerm]) -> list[float]:
    """Each part of a loss over its trivial value, if there are at least two kinds and all have one."""
    known = [t.value / t.trivial for t in terms if t.trivial > 0 and math.isfinite(t.value)]
    several = len({t.kind for t in terms}) > 1
    return known if several and len(known) == len(terms) else []


def score(run: TrialReport, twin: TrialReport, intrusiveness: float) -> float:
    """The level with a little added for how much was changed: lower is better."""
    return level(run, twin) + INTRUSION * intrusiveness


def trains(run: TrialReport) -> bool:
    """Whether a run does not fail, by its own verdict and by what its steps were like."""
    outcome = run.outcome
    return outcome.failed < 0.5 and outcome.verdict.kind != "unknown" and outcome.skipped <= SKIPPED


def margin(twin: TrialReport) -> float:
    """How far below the untouched run another must be to have done clearly better, as a difference of levels.

    Beside a run that is no better than a constant prediction less is asked for: some losses have a high floor (for text
    half of what a constant loses, and more), and to learn where nothing was learned is no luck. A run that ended in NaN
    is beaten by whatever is below a constant prediction.
    """
    if not math.isfinite(level(twin, twin)):
        return 0.0
    verdict = twin.facts.verdict
    return LEARNED if verdict is not None and verdict.kind == "stuck" else BETTER


def beats(run: TrialReport, twin: TrialReport, part: float | None = None) -> bool:
    """Whether a run has lost less than the untouched one (which may have lost everything): clearly, or by ``part``."""
    mine, its = level(run, twin), level(twin, twin)
    return math.isfinite(mine) and mine < min(its, 0.0) + (margin(twin) if part is None else part)
