"""The search for the remedy: which runs are made, in which order, and which of them is believed.

Pure: :class:`Search` asks for runs and is given reports. First what there is evidence for, each in a whole run; then
what serves the likely causes, briefly, the best of them in whole runs; then pairs. A run that has begun to learn in
its first steps need not learn in the end: nothing is adopted that has not run to the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest

from steadygrad.diagnose.trial import TrialReport
from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Arm, Remedy
from steadygrad.repair.score import BETTER, GOOD, beats, level, score, trains

LEADS = 4  # of evidence that are tried at most
CLEAR = 0.5  # probability of a cause, that a remedy should serve where the loss says little
LIKELY = 2  # rounds of single remedies before the first pairs
WIDTH = 5  # remedies that are tried briefly at once
FINALISTS = 3  # of them that run in whole at most
SHARE = 0.15  # of the run that a brief trial has
MIN_STEPS = 30  # of a brief trial
SHORT = 120  # steps of a run below which there are no brief trials
PAST = 2.0  # times the step at which the untouched run failed, that a brief trial runs at least
GENERIC = 0.04  # probability of a cause that nothing speaks for
NEAR = math.log(0.7)  # among remedies so near to the best the least intrusive wins
SINGLES = 3  # the best remedies, which are then combined
PAIRS = 10  # of them that are tried at once
WELL = math.log(0.15)  # of the trivial loss: no further finalist is run
FURTHER = math.log(0.9)  # improvement of a round without which no further round is begun


@dataclass(frozen=True)
class Tried:
    """An arm and what it came to."""

    arm: Arm
    report: TrialReport | None  # None: it came to no end
    note: str = ""  # why there is no report
    whole: bool = True  # it ran to the end of the script
    score: float = math.inf


RunArms = Callable[[Sequence[Arm], "int | None"], "list[tuple[TrialReport | None, str]]"]
"""Makes one run for each arm, of so many steps (None: whole), and gives its report or why there is none."""


@dataclass(frozen=True)
class Found:
    """The end of a search. ``best`` None: no remedy was better than nothing."""

    best: Tried | None
    tried: tuple[Tried, ...]
    lead: bool = False  # found by evidence, not by searching
    exhausted: bool = False  # the budget ended it


class Search:
    """One search.

    Args:
        case: the untouched run, diagnosed.
        twin: its report.
        candidates: all remedies for it.
        run: makes the runs.
        known: runs that were made before.
        left: share of the budget that is left; asked before each round.
        told: called with each run when it is over.
    """

    def __init__(
        self,
        case: Case,
        twin: TrialReport,
        candidates: Sequence[Remedy],
        run: RunArms,
        *,
        known: Sequence[Tried] = (),
        left: Callable[[], float] = lambda: 1.0,
        told: Callable[[Tried], None] = lambda tried: None,
    ) -> None:
        self._case, self._twin, self._run, self._left = case, twin, run, left
        self._told = told
        self._candidates = sorted(candidates, key=lambda r: (-self._worth(r, candidates), r.intrusiveness))
        self._tried = list(known)
        self._waiting: list[Tried] = []  # finalists that have not run to the end
        self._rejected: set[str] = set()
        self._remaining = self._rounds()
        self._begun = False
        self._length = twin.steps if twin.whole else 0

    def __call__(self) -> Found:
        """Search until a remedy trains the run well, or nothing is left to try. Called again, it goes on."""
        if not self._begun:
            self._begun = True
            lead = self._follow_leads()
            if lead is not None:
                return self._found(lead, lead=True)
        if self._waiting:
            self._run_whole()
        before = self._level_of_best()
        while not before < GOOD:
            if self._left() <= 0:
                return self._found(self._best(), exhausted=True)
            arms = next(self._remaining, None)
            if arms is None:
                break
            self._compete(arms)
            now = self._level_of_best()
            if math.isfinite(now) and not now < before + FURTHER:
                break
            before = now
        return self._found(self._best())

    def reject(self, tried: Tried) -> None:
        """It did not train again: it is no longer believed, and the search may be called once more."""
        self._rejected.add(tried.arm.name)

    def _level_of_best(self) -> float:
        best = self._best()
        if best is None or self._is_fluke(best):
            return math.inf
        return self._level(best)

    def _is_fluke(self, tried: Tried) -> bool:
        """Without a yardstick a lower loss proves nothing: what has no part in a clear cause may only put it off."""
        clear = bool(self._case.causes) and self._case.causes[0].probability > CLEAR
        return not self._has_yardstick() and clear and not self._serves_leading(tried)

    # ------------------------------------------------------------------ what there is evidence for
    def _follow_leads(self) -> Tried | None:
        """The first that keeps its promise: the likeliest cause first, of its remedies the least intrusive."""
        done = {t.arm.name for t in self._tried}
        leads = [Arm((r,)) for r in self._candidates if r.lead is not None and r.name not in done][:LEADS]
        for lead in leads:
            wanted = lead.remedies[0].lead
            assert wanted is not None
            (tried,) = self._try([lead], None)
            kept = not self._has_yardstick() or self._level(tried) < math.log(wanted)
            if self._works(tried) and not self._is_fluke(tried) and kept:
                return tried
        return None

    def _has_yardstick(self) -> bool:
        """Whether the loss of a constant prediction is known, so that a level says how much was learned."""
        verdicts = [t.report.facts.verdict for t in self._tried if t.report is not None]
        return any(
            v is not None and not math.isnan(v.progress) for v in (*verdicts, self._twin.facts.verdict)
        )

    # ------------------------------------------------------------------ the competition
    def _rounds(self) -> Iterator[list[Arm]]:
        """Singles, the likely ones first; pairs of the best of these; the other singles; and pairs again."""
        done = {t.arm.name for t in self._tried}
        singles = [Arm((r,)) for r in self._candidates if r.name not in done]
        likely = LIKELY * WIDTH
        for part in (singles[:likely], None, singles[likely:], None):
            arms = self._pairs() if part is None else part
            for start in range(0, len(arms), WIDTH):
                yield arms[start : start + WIDTH]

    def _compete(self, arms: Sequence[Arm]) -> None:
        """Brief trials, then the best of them in whole, until one is good."""
        steps = self._brief_steps()
        if steps is None:
            self._try(arms, None)
            return
        briefly = self._try(arms, steps)
        self._waiting = self._finalists(briefly)
        self._run_whole()

    def _run_whole(self) -> None:
        """Those that wait, until one is good; behind one that has learned only those that began better than it."""
        while self._waiting:
            brief = self._waiting.pop(0)
            (whole,) = self._try([brief.arm], None)
            if self._good(whole):
                return
            if self._works(whole) and self._level(whole) < GOOD:
                self._waiting = [t for t in self._waiting if t.score < brief.score]

    def _brief_steps(self) -> int | None:
        """Steps of a brief trial, past the step at which the untouched run failed; None: runs are short enough."""
        failed_at = self._case.failed_at
        past = math.ceil(PAST * failed_at) + MIN_STEPS if failed_at is not None else 0
        if not self._length:
            return max(past, 2 * MIN_STEPS)
        steps = max(MIN_STEPS, math.ceil(SHARE * self._length), min(past, self._length // 2))
        return None if self._length <= SHORT or steps > 0.6 * self._length else steps

    def _finalists(self, briefly: Sequence[Tried]) -> list[Tried]:
        """Who runs to the end, in this order: the best for the leading cause, the best of all, the next of each."""
        alive = sorted((t for t in briefly if self._differs(t)), key=lambda t: t.score)
        serving = [t for t in alive if self._serves_leading(t)]
        order = [t for pair in zip_longest(serving, alive) for t in pair if t is not None]
        chosen: list[Tried] = []
        for tried in order:
            if tried not in chosen:
                chosen.append(tried)
        return chosen[:FINALISTS]

    def _differs(self, tried: Tried) -> bool:
        """It is finite, and not step by step what the untouched run is."""
        report = tried.report
        if report is None or not math.isfinite(tried.score):
            return False
        if report.steps > len(report.losses) or self._twin.steps > len(self._twin.losses):
            return True  # thinned: they cannot be compared
        return report.losses != self._twin.losses[: len(report.losses)]

    def _pairs(self) -> list[Arm]:
        """The best whole runs so far, each with what may complete it: never two remedies of one family."""
        whole = sorted((t for t in self._tried if t.whole and self._differs(t)), key=lambda t: t.score)
        best = [t.arm for t in whole if len(t.arm.remedies) == 1][:SINGLES]
        brief = sorted((t for t in self._tried if self._differs(t)), key=lambda t: t.score)
        best += [t.arm for t in brief if len(t.arm.remedies) == 1 and t.arm not in best][
            : SINGLES - len(best)
        ]
        partners = [Arm((r,)) for r in self._candidates]
        pairs: dict[frozenset[str], Arm] = {}
        for one, other in product(best, partners):
            a, b = one.remedies[0], other.remedies[0]
            if a.combines_with(b):
                pairs.setdefault(frozenset((a.name, b.name)), Arm((a, b)))
        done = {t.arm.name for t in self._tried}
        order = sorted((p for p in pairs.values() if p.name not in done), key=self._promise)
        return order[:PAIRS]

    def _promise(self, pair: Arm) -> float:
        """The better of what the two came to alone; one that was not tried alone counts as neutral."""
        scores = {t.arm.remedies[0].name: t.score for t in self._tried if len(t.arm.remedies) == 1}
        return sum(min(scores.get(r.name, 0.3), 1.0) for r in pair.remedies) + 0.3 * pair.intrusiveness

    # ------------------------------------------------------------------ runs and what they are worth
    def _try(self, arms: Sequence[Arm], steps: int | None) -> list[Tried]:
        found = []
        for arm, (report, note) in zip(arms, self._run(arms, steps), strict=True):
            worth = math.inf if report is None else score(report, self._twin, arm.intrusiveness)
            whole = steps is None or report is not None and report.steps < steps
            tried = Tried(arm, report, note, whole, worth)
            found.append(tried)
            self._told(tried)
            if whole and report is not None and report.whole:
                self._length = max(self._length, report.steps)
        self._tried += found
        return found

    def _level(self, tried: Tried) -> float:
        return math.inf if tried.report is None else level(tried.report, self._twin)

    def _works(self, tried: Tried) -> bool:
        """It trains where the untouched run does not."""
        return (
            tried.whole
            and tried.arm.name not in self._rejected
            and tried.report is not None
            and trains(tried.report)
            and beats(tried.report, self._twin)
        )

    def _good(self, tried: Tried) -> bool:
        enough = WELL if self._has_yardstick() else BETTER
        return self._works(tried) and not self._is_fluke(tried) and self._level(tried) < enough

    def _best(self) -> Tried | None:
        """Of those that have learned nearly as well as the best of all, the one that changes least."""
        works = [t for t in self._tried if self._works(t)]
        if not works:
            return None
        if not self._has_yardstick():  # a lower loss is no better one: that it trains is all that is known
            return min(works, key=lambda t: (not self._serves_leading(t), t.arm.intrusiveness, t.score))
        best = min(self._level(t) for t in works)
        if not best < GOOD:  # none has learned well: what was gained counts most
            return min(works, key=lambda t: t.score)
        near = [t for t in works if self._level(t) <= min(best - NEAR, GOOD)]
        return min(near, key=lambda t: (t.arm.intrusiveness, t.score))

    def _serves_leading(self, tried: Tried) -> bool:
        leading = {c.cause for c in self._case.causes[:1]}
        return any(leading & set(r.serves) for r in tried.arm.remedies)

    def _worth(self, remedy: Remedy, candidates: Sequence[Remedy]) -> float:
        """How likely it is to be the one: the probability of its causes, shared among those that serve them."""
        best = 0.0
        for cause in remedy.serves:
            p = max(self._case.probability(cause), GENERIC)
            rivals = sorted((r for r in candidates if cause in r.serves), key=lambda r: r.intrusiveness)
            best = max(best, p / (1 + rivals.index(remedy)))
        return best

    def _found(self, best: Tried | None, *, lead: bool = False, exhausted: bool = False) -> Found:
        return Found(best, tuple(self._tried), lead, exhausted)
