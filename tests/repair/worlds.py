"""Trainings that are only numbers: what a run under given remedies would come to, for a search that must find it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.trial import TrialReport
from steadygrad.diagnose.verdict import Kind, Verdict
from steadygrad.records import Finding, LossTerm
from steadygrad.repair.remedy import Arm, Remedy

STEPS = 400
TRIVIAL = 2.0


def report(
    end: float,
    *,
    kind: Kind | None = None,
    start: float = 2.0,
    trivial: float = TRIVIAL,
    steps: int = STEPS,
    whole: bool = True,
    skipped: int = 0,
    terms: Sequence[LossTerm] = (),
    findings: Sequence[Finding] = (),
    losses: Sequence[float] = (),
) -> TrialReport:
    """A run that ended at this loss; its verdict follows from it unless ``kind`` says another."""
    progress = 1 - end / trivial
    if kind is None:
        if not math.isfinite(end):
            kind = "nonfinite"
        elif math.isnan(trivial):
            kind = "ok" if end < start else "worse"
        else:
            kind = "stuck" if progress < 0.05 else "ambiguous" if progress < 0.7 else "learned"
    verdict = Verdict(kind, progress, start, end, trivial, "")
    return TrialReport(
        Facts(verdict=verdict, steps=steps),
        tuple(findings),
        tuple(losses) or (start, end),
        steps,
        skipped,
        whole,
        {},
        tuple(terms),
    )


def remedy(
    name: str, *serves: str, intrusiveness: float = 0.1, lead: float | None = None, family: str = ""
) -> Remedy:
    return Remedy(name, {name: 1}, serves, "tuning", intrusiveness, "", lead, family)


class World:
    """Answers a search: ``ends`` gives the loss at the end by the names of the remedies in force.

    ``early`` does the same for brief trials; without it they end where whole ones do.
    """

    def __init__(
        self,
        ends: Mapping[tuple[str, ...], float],
        *,
        otherwise: float = math.nan,
        early: Callable[[tuple[str, ...]], float] | None = None,
    ) -> None:
        self._ends, self._otherwise, self._early = ends, otherwise, early
        self.asked: list[tuple[tuple[str, ...], int | None]] = []

    def __call__(self, arms: Sequence[Arm], steps: int | None) -> list[tuple[TrialReport | None, str]]:
        found: list[tuple[TrialReport | None, str]] = []
        for arm in arms:
            names = tuple(sorted(r.name for r in arm.remedies))
            self.asked.append((names, steps))
            end = self._ends.get(names, self._otherwise)
            if steps is not None and self._early is not None:
                end = self._early(names)
            found.append((report(end, steps=steps or STEPS, whole=steps is None), ""))
        return found

    @property
    def cost(self) -> float:
        """Whole runs that were asked for."""
        return sum((steps or STEPS) / STEPS for _, steps in self.asked)
