"""What a repeated run came to, and what the changed runs say of its causes. Loads no torch: a parent only reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steadygrad.diagnose.causes import diagnose, failed
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.interventions import Arm, Intervention, Outcome, choose, confirm, recovered
from steadygrad.diagnose.stored import facts_of_json, facts_to_json
from steadygrad.records import Cause, Finding
from steadygrad.trace.jsontext import number

KEPT = 1024  # losses in a report
TRAINED = "the rerun trained: what went wrong is not reproducible"


@dataclass(frozen=True)
class TrialReport:
    """What a trial came to."""

    facts: Facts
    findings: tuple[Finding, ...]
    losses: tuple[float, ...]  # of the optimizer that stepped first, thinned evenly to at most 1024
    steps: int
    skipped: int  # by the plan

    @property
    def outcome(self) -> Outcome:
        assert self.facts.verdict is not None
        share = self.skipped / self.steps if self.steps else 0.0
        return Outcome(self.facts.verdict, failed(self.findings, self.facts), share)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": asdict(self.facts.verdict) if self.facts.verdict is not None else None,
            "course": list(self.losses),
            "findings": [f.to_json() for f in self.findings],
            "facts": facts_to_json(self.facts),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> TrialReport:
        """The inverse of :meth:`to_json`."""
        evidence = [{k: number(v) for k, v in f["evidence"].items()} for f in data["findings"]]
        return cls(
            facts=facts_of_json(data["facts"]),
            findings=tuple(
                Finding(**{**f, "evidence": e}) for f, e in zip(data["findings"], evidence, strict=True)
            ),
            losses=tuple(map(number, data["course"])),
            steps=int(data["steps"]),
            skipped=int(data["skipped"]),
        )


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
