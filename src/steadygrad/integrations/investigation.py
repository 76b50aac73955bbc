"""What a repeated run came to, and what the changed runs say of its causes. Loads no torch: a parent only reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadygrad.diagnose.causes import diagnose
from steadygrad.diagnose.interventions import Arm, Intervention, choose, confirm, recovered
from steadygrad.diagnose.trial import TrialReport
from steadygrad.records import Cause

TRAINED = "the rerun trained: what went wrong is not reproducible"


RunArms = Callable[[Sequence[Intervention]], "list[tuple[TrialReport | None, str]]"]


@dataclass(frozen=True)
class Rerun:
    """A failing training and its repetitions."""

    twin: TrialReport
    arms: tuple[Arm, ...]
    causes: tuple[
        Cause, ...
    ]  # ranked by what the twin showed and what the arms came to; none if the twin trains
    notes: tuple[str, ...] = ()


def investigate(
    twin: TrialReport,
    run_arms: RunArms,
    *,
    interventions: Sequence[Intervention] | None = None,
    most: int = 4,
) -> Rerun:
    """Diagnose the twin, have the changes that fit run, and rank its causes by what they came to.

    Args:
        twin: the run without a change.
        run_arms: runs one training per change; each gives its report, or None and why there is none.
        interventions: changes to try; None: those that serve the likely causes.
        most: number of them at most.
    """
    causes = diagnose(twin.findings, twin.facts)
    if twin.outcome.failed < 0.5:
        return Rerun(twin, (), (), (TRAINED,))
    chosen = choose(causes, twin.facts, most) if interventions is None else list(interventions)
    arms = []
    for change, (report, note) in zip(chosen, run_arms(chosen), strict=True):
        outcome = None if report is None else report.outcome
        arms.append(Arm(change, outcome, outcome is not None and recovered(twin.outcome, outcome), note))
    ranked = confirm(causes, twin.outcome, [(arm.intervention, arm.outcome) for arm in arms])
    return Rerun(twin, tuple(arms), tuple(ranked))
