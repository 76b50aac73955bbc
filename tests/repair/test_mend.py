"""A repair from the untouched run to the proof on other seeds."""

import math

import pytest

from steadygrad.diagnose.trial import TrialReport
from steadygrad.records import Finding
from steadygrad.repair.mend import Answer, NoRun, mend
from steadygrad.repair.score import trains
from tests.repair.worlds import STEPS, TRIVIAL, remedy, report

HEALTHY, STUCK, DEAD = report(0.1), report(2.0), report(math.nan, steps=60, whole=False)


class Lab:
    """Answers requests from tables: the twin by seed, remedies by name and seed."""

    def __init__(self, twin, ends, again=None):
        self.twin, self.ends, self.again, self.asked = twin, ends, again, []

    def __call__(self, requests):
        return [Answer(*self.answer(r)) for r in requests]

    def answer(self, request):
        self.asked.append(request)
        if not request.plan:
            if request.name == "the same again":
                return self.again or self.twin_of(0), ""
            return self.twin_of(request.seed_offset), ""
        end = self.ends.get(tuple(sorted(request.plan)), 2.0)
        end = end[request.seed_offset] if isinstance(end, tuple) else end
        steps = request.steps or STEPS
        return report(end, steps=steps, whole=request.steps is None), ""

    def twin_of(self, seed):
        return self.twin if isinstance(self.twin, TrialReport | None) else self.twin[seed]


def known(case):
    """Remedies with names only: what they do is in the lab's tables."""
    return [remedy("a", "lr_too_large"), remedy("b", "vanishing"), remedy("c", "dead_units")]


def repair(lab, **more):
    return mend(lab, catalogue=known, **more)


def test_a_healthy_run_is_left_alone_at_the_cost_of_a_few_steps():
    lab = Lab(HEALTHY, {})
    found = repair(lab)
    assert found.healthy and not found.cured and found.remedies == ()
    assert all(not r.plan for r in lab.asked) and sum(r.steps or 0 for r in lab.asked) < 0.1 * STEPS


def test_a_failing_run_is_cured_and_the_cure_is_proven_on_another_seed():
    lab = Lab(STUCK, {("b",): 0.1})
    found = repair(lab, seeds=3)
    assert found.cured and [r.name for r in found.remedies] == ["b"]
    assert [(s.twin_trains, s.fixed_trains) for s in found.seeds] == [(False, True)] * 3
    assert found.plan == {"b": 1}


def test_the_proof_on_another_seed_takes_half_of_the_run_where_half_of_it_tells():
    lab = Lab(STUCK, {("b",): 0.1})
    repair(lab, seeds=2)
    assert [r.steps for r in lab.asked if r.seed_offset == 1] == [STEPS // 2] * 2


def test_a_remedy_that_does_not_train_in_half_of_the_run_has_all_of_it():
    class Slow(Lab):
        def answer(self, request):
            if request.seed_offset and request.plan and request.steps is not None:
                self.asked.append(request)
                return report(2.0, steps=request.steps, whole=False), ""
            return super().answer(request)

    lab = Slow(STUCK, {("b",): 0.1})
    found = repair(lab, seeds=2)
    assert found.cured and found.seeds[1].fixed.steps == STEPS
    assert [r.steps for r in lab.asked if r.seed_offset == 1 and r.plan] == [STEPS // 2, None]


@pytest.mark.parametrize(("end", "cured"), [(0.5, True), (0.8, False)])
def test_on_another_seed_half_good_will_do_if_it_is_far_better_than_its_twin(end, cured):
    odd = Finding("F101", "rule", 0, "model", "odd in its first step", severity="alarm")

    class Odd(Lab):
        def answer(self, request):
            if request.seed_offset and request.plan:
                whole = request.steps is None
                return report(end * TRIVIAL, steps=request.steps or STEPS, whole=whole, findings=[odd]), ""
            return super().answer(request)

    assert not trains(report(end * TRIVIAL, findings=[odd]))  # by itself it would be taken for a failure
    assert repair(Odd(STUCK, {("b",): 0.1}), seeds=2).cured == cured


def test_the_proof_of_a_run_that_failed_late_runs_past_the_failure():
    alarm = Finding("G100", "nonfinite", 350, "model", "", severity="alarm")
    lab = Lab(report(math.nan, findings=[alarm]), {("b",): 0.1})
    repair(lab, seeds=2)
    assert [r.steps for r in lab.asked if r.seed_offset == 1] == [None] * 2


def test_a_remedy_that_was_lucky_with_one_seed_gives_way_to_the_next():
    found = repair(Lab(STUCK, {("b",): (0.1, 2.0), ("c",): (0.2, 0.2)}))
    assert [r.name for r in found.remedies] == ["c"]
    assert any("not with another" in note for note in found.notes)


def test_a_run_that_nothing_helps_is_not_called_cured():
    found = repair(Lab(STUCK, {}))
    assert not found.cured and not found.healthy and found.remedies == () and len(found.tried) >= 3


def test_a_twin_that_trains_with_another_seed_is_told():
    found = repair(Lab({0: STUCK, 1: HEALTHY}, {("b",): 0.1}))
    assert found.cured and any("trains by itself on 1 of 2 seeds" in note for note in found.notes)


def test_runs_that_differ_under_the_same_seeds_are_told():
    twin = report(0.1, losses=(2.0, 1.0, 0.5), steps=3)
    found = repair(Lab(twin, {}, again=report(0.1, losses=(2.0, 1.1, 0.5), steps=3)))
    assert not found.deterministic and "not deterministic" in found.notes[0] and "0.1" in found.notes[0]


def test_a_script_without_a_step_cannot_be_repaired():
    def runs(requests):
        return [Answer(None, "it took no optimizer step") for _ in requests]

    with pytest.raises(NoRun, match="no optimizer step"):
        mend(runs)


def test_a_half_bad_run_has_failed_only_if_a_remedy_makes_it_far_better():
    half_bad = report(1.5)
    assert repair(Lab(half_bad, {("a",): 1.2, ("b",): 1.2, ("c",): 1.2})).healthy
    found = repair(Lab(half_bad, {("a",): 0.2, ("b",): 0.2, ("c",): 0.2}))
    assert found.cured and not found.healthy


def test_a_budget_of_steps_ends_the_search():
    found = repair(Lab(STUCK, {}), max_runs=1.0)
    assert not found.cured and any("budget" in note for note in found.notes)
