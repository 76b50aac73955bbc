"""What a trial came to: a run watched for a diagnosis, unchanged or with something changed. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from steadygrad.diagnose.causes import failed
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.interventions import Outcome
from steadygrad.diagnose.stored import facts_of_json, facts_to_json, of_json
from steadygrad.records import Finding, LossTerm
from steadygrad.trace.jsontext import number

KEPT = 1024  # losses in a report


@dataclass(frozen=True)
class TrialReport:
    """What a trial came to."""

    facts: Facts
    findings: tuple[Finding, ...]
    losses: tuple[float, ...]  # of the optimizer that stepped first, thinned evenly to at most 1024
    steps: int
    skipped: int  # by the plan
    whole: bool = True  # False: it was ended before the script's own end
    survey: Mapping[str, Any] = field(default_factory=dict)  # what each surveyor has found, by its key
    terms: tuple[LossTerm, ...] = ()  # parts of the loss late in the run

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
            "whole": self.whole,
            "survey": dict(self.survey),
            "terms": [asdict(t) for t in self.terms],
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
            whole=bool(data["whole"]),
            survey=data["survey"],
            terms=tuple(of_json(LossTerm, t) for t in data["terms"]),
        )
