"""A repair from the untouched run to the prescription. Pure: it asks for runs, wherever they are made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steadygrad.diagnose.causes import diagnose, rank_causes
from steadygrad.diagnose.interventions import Intervention, confirm
from steadygrad.diagnose.trial import TrialReport
from steadygrad.records import Cause
from steadygrad.repair.case import Case
from steadygrad.repair.remedies import remedies
from steadygrad.repair.remedy import Arm, Remedy, merged
from steadygrad.repair.score import beats, score, trains
from steadygrad.repair.search import MIN_STEPS, PAST, SHORT, Found, Search, Tried

AGAIN = 20  # steps of the second untouched run, which must repeat the first bit for bit
HALF_BAD = 0.5  # progress over a constant prediction below which a counterfactual may prove a failure
LIKELY = 0.35  # probability of failure of an idle run, above which the same is tried
PROOFS = 2  # remedies that may prove it, side by side
NEARLY = (
    0.25  # progress below which twice as many are asked: of the zoo's runs nearly all such ones have failed
)
MOST = 0.8  # of the run: a proof that would be longer is given all of it
CONFIRMED = 3  # remedies at most that are taken to the other seeds, best first
SPECIFIC, GENERIC = 3.0, 1.5  # log-odds that a cure adds to the causes that its remedy serves


@dataclass(frozen=True)
class Request:
    """A run to be made."""

    plan: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    steps: int | None = None  # None: to the script's own end
    seed_offset: int = 0  # other seeds than the script's own
    survey: bool = False
    remedies: tuple[Remedy, ...] = ()  # that the plan is made of


@dataclass(frozen=True)
class Answer:
    """What came of it."""

    report: TrialReport | None
    note: str = ""  # why there is no report
    seconds: float = 0.0


Runs = Callable[[Sequence[Request]], Sequence[Answer]]


class NoRun(Exception):
    """The untouched run cannot be judged; the message says why."""


@dataclass(frozen=True)
class Seeded:
    """The untouched run and the repaired one with the same other seeds."""

    seed_offset: int
    twin: TrialReport | None
    fixed: TrialReport | None
    twin_trains: bool
    fixed_trains: bool


@dataclass(frozen=True)
class Repair:
    """What a repair came to."""

    healthy: bool  # nothing was to be repaired
    cured: bool
    twin: TrialReport
    causes: tuple[Cause, ...] = ()
    remedies: tuple[Remedy, ...] = ()  # of the prescription; empty without one
    fixed: TrialReport | None = None
    seeds: tuple[Seeded, ...] = ()
    tried: tuple[Tried, ...] = ()
    lead: bool = False  # the remedy was found by evidence, not by searching
    deterministic: bool = True
    steps_total: int = 0  # of all runs but the first
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> dict[str, Any]:
        return merged(self.remedies)

    @property
    def verdict(self) -> str:
        """How the untouched run went, a sentence."""
        verdict = self.twin.facts.verdict
        return verdict.reason if verdict is not None else ""


def mend(
    runs: Runs,
    *,
    seeds: int = 2,
    max_runs: float = 30.0,
    max_seconds: float = math.inf,
    catalogue: Callable[[Case], Sequence[Remedy]] = remedies,
    told: Callable[[str, Any], None] = lambda what, value: None,
) -> Repair:
    """Find a remedy for a training that fails, and prove it against the untouched run.

    Args:
        runs: makes runs, side by side if it can; deterministic as far as the script is.
        seeds: seeds on which the remedy is compared with the untouched run, the script's own among them; at least 1.
        max_runs: what the search may cost, in steps of the untouched run.
        max_seconds: the same in time. A round that has begun is ended.
        catalogue: the remedies that could be tried on a case.
        told: called with ("verdict", Case), ("tried", Tried), ("seed", Seeded) as they come.

    Raises:
        NoRun: the untouched script took no optimizer step.
    """
    return _Mending(runs, seeds, max_runs, max_seconds, catalogue, told)()


class _Mending:
    def __init__(
        self,
        runs: Runs,
        seeds: int,
        max_runs: float,
        max_seconds: float,
        catalogue: Callable[[Case], Sequence[Remedy]],
        told: Callable[[str, Any], None],
    ) -> None:
        self._catalogue = catalogue
        self._ask, self._seeds, self._told = runs, seeds, told
        self._max_runs, self._max_seconds = max_runs, max_seconds
        self._steps = 0
        self._length = 1
        self._began = time.monotonic()
        self._notes: list[str] = []

    def __call__(self) -> Repair:
        first, again = self._ask(
            [Request(name="nothing changed", survey=True), Request(name="the same again", steps=AGAIN)]
        )
        twin = first.report
        if twin is None:
            raise NoRun(first.note)
        self._began = time.monotonic() - first.seconds
        self._length = max(1, twin.steps)
        deterministic = self._same(twin, again.report)
        case = self._case(twin)
        failing = twin.outcome.failed >= 0.5
        proof: list[Tried] = []
        if not failing and self._suspicious(twin):
            proof = self._counterfactual(case, twin)
            failing = _proven(proof, twin)
        if not failing:
            return self._result(twin, (), healthy=True, tried=tuple(proof), deterministic=deterministic)
        self._told("verdict", case)
        search = Search(
            case,
            twin,
            self._catalogue(case),
            self._arms,
            known=proof,
            left=self._left,
            told=lambda tried: self._told("tried", tried),
        )
        found, best, seeded = self._search_and_confirm(search, case, twin)
        tried = found.tried
        causes = self._causes(case, twin, tried)
        if found.exhausted:
            self._notes.append("the budget ended the search")
        if best is None:
            return self._result(twin, causes, tried=tried, deterministic=deterministic)
        return self._result(
            twin,
            causes,
            cured=True,
            remedies=best.arm.remedies,
            fixed=best.report,
            seeds=seeded,
            tried=tried,
            lead=found.lead,
            deterministic=deterministic,
        )

    def _result(
        self,
        twin: TrialReport,
        causes: Sequence[Cause],
        *,
        healthy: bool = False,
        cured: bool = False,
        **more: Any,
    ) -> Repair:
        return Repair(
            healthy=healthy,
            cured=cured,
            twin=twin,
            causes=tuple(causes),
            steps_total=self._steps,
            seconds=time.monotonic() - self._began,
            notes=tuple(self._notes),
            **more,
        )

    # ------------------------------------------------------------------ the untouched run
    def _same(self, twin: TrialReport, again: TrialReport | None) -> bool:
        if again is None:
            return True
        self._steps += again.steps
        n = min(len(again.losses), len(twin.losses)) if twin.steps <= len(twin.losses) else 0
        pairs = list(zip(twin.losses[:n], again.losses[:n], strict=True))
        far = max(
            (abs(a - b) / max(abs(a), 1e-12) for a, b in pairs if a != b and math.isfinite(a - b)),
            default=0.0,
        )
        if far > 0:
            self._notes.append(
                f"the script is not deterministic under fixed seeds: in its first {n} steps two untouched runs "
                f"differ by up to {far:.2g} of the loss, and so may all runs compared here"
            )
        return far == 0

    def _case(self, twin: TrialReport) -> Case:
        causes = diagnose(twin.findings, twin.facts) or rank_causes(twin.findings, twin.facts)
        return Case(twin.facts, causes, twin.findings, twin.survey)

    def _suspicious(self, twin: TrialReport) -> bool:
        """Somewhere between a constant prediction and a good one, or a little worse than it began."""
        verdict = twin.facts.verdict
        assert verdict is not None
        if verdict.kind == "ambiguous":
            return verdict.progress < HALF_BAD
        return verdict.kind == "worse" or verdict.kind == "idle" and twin.outcome.failed > LIKELY

    def _counterfactual(self, case: Case, twin: TrialReport) -> list[Tried]:
        """What could have been: a run that looks half bad has failed only if a likely remedy makes it far better.

        The likeliest remedies, each of another kind: two strengths of one change would ask the same twice.
        """
        likely = sorted(
            self._catalogue(case), key=lambda r: (-max(map(case.probability, r.serves)), r.intrusiveness)
        )
        kinds: dict[frozenset[str], Remedy] = {}
        for remedy in likely:
            kinds.setdefault(frozenset(remedy.plan), remedy)
        arms = [Arm((r,)) for r in kinds.values()]
        verdict = twin.facts.verdict
        rounds = 2 if verdict is not None and verdict.progress < NEARLY else 1
        tried: list[Tried] = []
        for i in range(rounds):
            asked = arms[i * PROOFS : (i + 1) * PROOFS]
            for arm, (report, note) in zip(asked, self._arms(asked, None), strict=True):
                points = math.inf if report is None else score(report, twin, arm.intrusiveness)
                tried.append(Tried(arm, report, note, True, points))
            if _proven(tried, twin):
                break
        return tried

    # ------------------------------------------------------------------ runs
    def _arms(self, arms: Sequence[Arm], steps: int | None) -> list[tuple[TrialReport | None, str]]:
        answers = self._ask([Request(arm.plan, arm.name, steps, remedies=arm.remedies) for arm in arms])
        for answer in answers:
            if answer.report is not None:
                self._steps += answer.report.steps
                if answer.report.whole:
                    self._length = max(self._length, answer.report.steps)
        return [(a.report, a.note) for a in answers]

    def _left(self) -> float:
        """Share of the budget that is left."""
        by_steps = 1 - self._steps / (self._max_runs * self._length)
        by_time = 1 - (time.monotonic() - self._began) / self._max_seconds
        return min(by_steps, by_time)

    # ------------------------------------------------------------------ the proof
    def _search_and_confirm(
        self, search: Search, case: Case, twin: TrialReport
    ) -> tuple[Found, Tried | None, tuple[Seeded, ...]]:
        """Search until a remedy is found that also trains with other seeds, a few times at most."""
        twins: dict[int, TrialReport | None] = {}
        found = search()
        for _ in range(CONFIRMED):
            if found.best is None:
                break
            seeded = self._confirm(found.best, case, twin, twins)
            if all(s.fixed_trains for s in seeded):
                lucky = sum(s.twin_trains for s in seeded)
                if lucky:
                    self._notes.append(
                        f"the untouched script trains by itself on {lucky} of {len(seeded)} seeds: luck plays a part"
                    )
                return found, found.best, seeded
            self._notes.append(
                f"{found.best.arm.name} trained with the script's own seed and not with another one"
            )
            search.reject(found.best)
            found = search()
        return found, None, ()

    def _confirm(
        self, tried: Tried, case: Case, twin: TrialReport, twins: dict[int, TrialReport | None]
    ) -> tuple[Seeded, ...]:
        """The remedy on other seeds beside the untouched run with the same; the first on which it fails is the last.

        Both run for half of the script's steps where that is well past the failure; a remedy that has not shown by then
        that it trains has the rest of the run to do so.
        """
        seeded = [Seeded(0, twin, tried.report, False, True)]
        steps = self._proof_steps(case)
        for offset in range(1, self._seeds):
            proof = Request(tried.arm.plan, tried.arm.name, steps, offset)
            requests = [proof]
            if offset not in twins:
                requests.append(Request({}, "nothing changed", None if case.exploded else steps, offset))
            answers = self._count(self._ask(requests))
            if offset not in twins:
                twins[offset] = answers[1].report
            found = self._compare(offset, twins[offset], answers[0].report)
            if not found.fixed_trains and steps is not None:
                (whole,) = self._count(self._ask([replace(proof, steps=None)]))
                found = self._compare(offset, twins[offset], whole.report)
            seeded.append(found)
            self._told("seed", found)
            if not found.fixed_trains:
                break
        return tuple(seeded)

    def _proof_steps(self, case: Case) -> int | None:
        """Half of the script's steps, or more if it has failed late; None: all of them."""
        past = math.ceil(PAST * case.failed_at) if case.failed_at is not None else 0
        steps = max(math.ceil(self._length / 2), past + MIN_STEPS)
        return None if self._length < SHORT or steps > MOST * self._length else steps

    def _count(self, answers: Sequence[Answer]) -> list[Answer]:
        self._steps += sum(a.report.steps for a in answers if a.report is not None)
        return list(answers)

    def _compare(self, offset: int, twin: TrialReport | None, fixed: TrialReport | None) -> Seeded:
        twin_trains = twin is not None and trains(twin)
        fixed_trains = fixed is not None and trains(fixed)
        if twin is not None and fixed is not None and not twin_trains:
            # Half good and far better than its twin will do: so the untouched run was judged as well.
            half_good = fixed.outcome.verdict.kind == "ambiguous" and beats(fixed, twin)
            fixed_trains = half_good or fixed_trains and beats(fixed, twin, 0.0)
        return Seeded(offset, twin, fixed, twin_trains, fixed_trains)

    def _causes(self, case: Case, twin: TrialReport, tried: Sequence[Tried]) -> list[Cause]:
        """Ranked anew by what the remedies came to."""
        arms = [
            (
                Intervention(
                    t.arm.name, t.arm.remedies[0].serves, t.arm.plan,
                    SPECIFIC if t.arm.remedies[0].lead is not None else GENERIC,
                ),
                t.report.outcome,
            )
            for t in tried
            if t.whole and t.report is not None and len(t.arm.remedies) == 1
        ]  # fmt: skip
        return confirm(case.causes, replace(twin.outcome, failed=1.0), arms)


def _proven(tried: Sequence[Tried], twin: TrialReport) -> bool:
    """Whether one of these remedies has made the run far better."""
    return any(t.report is not None and trains(t.report) and beats(t.report, twin) for t in tried)
