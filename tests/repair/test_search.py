"""The search finds what trains, follows evidence first, and believes nothing that has not run to its end."""

import math

import pytest

from steadygrad.records import Cause
from steadygrad.repair.case import Case
from steadygrad.repair.search import Search
from tests.repair.worlds import STEPS, World, remedy, report

STUCK = report(2.0)
DEAD = report(math.nan, steps=60, whole=False)


def cause(name, probability):
    return Cause(name, probability, "model", (), (), "")


def case(twin, *causes):
    return Case(twin.facts, causes)


def names(found):
    return [r.name for r in found.best.arm.remedies]


def test_the_remedy_of_the_likely_cause_is_found_and_the_rest_is_not_tried_to_the_end():
    world = World({("a",): 0.1}, otherwise=2.0)
    candidates = [remedy(x, "lr_too_large" if x == "a" else "vanishing") for x in "edcba"]
    found = Search(case(STUCK, cause("lr_too_large", 0.8)), STUCK, candidates, world)()
    assert names(found) == ["a"]
    assert [arm for arm, steps in world.asked if steps is None][0] == ("a",)


def test_evidence_is_followed_before_anything_else():
    world = World({("lead",): 0.5, ("strong",): 0.01}, otherwise=2.0)
    candidates = [remedy("strong", "lr_too_large"), remedy("lead", "bad_batch", lead=0.6)]
    found = Search(case(STUCK, cause("lr_too_large", 0.9)), STUCK, candidates, world)()
    assert names(found) == ["lead"] and found.lead
    assert world.asked == [(("lead",), None)]


def test_a_lead_that_does_not_reach_what_it_promised_competes_with_the_rest():
    world = World({("lead",): 1.0, ("strong",): 0.1}, otherwise=2.0)
    candidates = [remedy("strong", "lr_too_large"), remedy("lead", "unscaled_inputs", lead=0.15)]
    found = Search(case(STUCK, cause("lr_too_large", 0.9)), STUCK, candidates, world)()
    assert names(found) == ["strong"] and not found.lead


def test_of_two_leads_that_keep_their_promise_the_less_intrusive_is_run_alone():
    world = World({("skip",): 0.12, ("norm",): 0.1}, otherwise=2.0)
    candidates = [
        remedy("norm", "bad_batch", intrusiveness=0.45, lead=0.6),
        remedy("skip", "bad_batch", intrusiveness=0.02, lead=0.6),
    ]
    assert names(Search(case(STUCK), STUCK, candidates, world)()) == ["skip"]
    assert world.cost == 1


def test_of_remedies_that_are_nearly_equal_the_least_intrusive_is_chosen():
    world = World({("lr",): 0.42, ("norm",): 0.4}, otherwise=2.0)
    candidates = [remedy("norm", "x", intrusiveness=0.45), remedy("lr", "x", intrusiveness=0.12)]
    assert names(Search(case(STUCK), STUCK, candidates, world)()) == ["lr"]


def test_where_none_learns_well_the_best_is_chosen_though_it_changes_more():
    world = World({("clip",): 1.2, ("momentum",): 0.95}, otherwise=2.0)
    candidates = [remedy("clip", "x", intrusiveness=0.06), remedy("momentum", "x", intrusiveness=0.2)]
    assert names(Search(case(STUCK), STUCK, candidates, world)()) == ["momentum"]


def test_a_rejected_remedy_gives_way_to_the_next_one():
    world = World({("a",): 0.1, ("b",): 0.2}, otherwise=2.0)
    search = Search(case(STUCK), STUCK, [remedy(x, "x") for x in "ab"], world)
    first = search()
    search.reject(first.best)
    assert names(first) == ["a"] and names(search()) == ["b"]


def test_what_learns_fast_and_fails_in_the_end_is_not_believed():
    early = {("fast",): 0.2, ("slow",): 1.2}
    world = World({("fast",): 2.0, ("slow",): 0.1}, otherwise=2.0, early=lambda names: early.get(names, 2.0))
    candidates = [remedy("fast", "x"), remedy("slow", "x"), remedy("other", "x")]
    assert names(Search(case(STUCK), STUCK, candidates, world)()) == ["slow"]


def test_the_best_for_the_leading_cause_runs_to_its_end_though_others_were_ahead():
    early = {("a",): 0.3, ("b",): 0.4, ("named",): 1.9}
    world = World({("named",): 0.1}, otherwise=2.0, early=lambda names: early.get(names, 2.0))
    candidates = [
        remedy("named", "attention_logit_growth", intrusiveness=0.5),
        remedy("a", "x"),
        remedy("b", "x"),
    ]
    found = Search(case(STUCK, cause("attention_logit_growth", 0.7)), STUCK, candidates, world)()
    assert names(found) == ["named"]


def test_a_pair_is_found_when_no_single_remedy_helps():
    world = World({("a",): 1.7, ("a", "b"): 0.1}, otherwise=2.0)
    candidates = [remedy(x, "x") for x in "abc"]
    found = Search(case(STUCK), STUCK, candidates, world)()
    assert sorted(names(found)) == ["a", "b"]


def test_two_remedies_of_one_family_are_never_combined():
    world = World({}, otherwise=1.7)
    candidates = [remedy("lr / 10", "x", family="rate"), remedy("lr / 100", "x", family="rate")]
    Search(case(STUCK), STUCK, candidates, world)()
    assert all(len(asked) == 1 for asked, _ in world.asked)


def test_nothing_is_adopted_when_nothing_beats_the_untouched_run():
    world = World({}, otherwise=1.99)
    found = Search(case(STUCK), STUCK, [remedy(x, "x") for x in "abc"], world)()
    assert found.best is None and len(found.tried) >= 3


def test_a_run_that_skips_most_of_its_steps_is_no_cure():
    def run(arms, steps):
        return [(report(0.1, skipped=STEPS // 2 + 1), "") for _ in arms]

    assert Search(case(DEAD), DEAD, [remedy("skip", "unsafe_op", lead=0.6)], run)().best is None


def test_brief_trials_run_past_the_step_that_failed():
    from steadygrad.records import Finding

    twin = report(math.nan, steps=STEPS)
    alarm = Finding("G100", "nonfinite", 150, "model", "", severity="alarm")
    world = World({}, otherwise=2.0)
    candidates = [remedy(x, "x") for x in "abc"]
    Search(Case(twin.facts, (), (alarm,)), twin, candidates, world)()
    brief = [steps for _, steps in world.asked if steps is not None]
    assert all(steps > 150 for steps in brief)


def test_what_changes_nothing_is_neither_run_to_its_end_nor_combined():
    course = tuple(2.0 + math.sin(i) for i in range(STEPS))
    twin = report(2.0, losses=course)
    asked = []

    def run(arms, steps):
        asked.extend((arm.name, steps) for arm in arms)
        size = steps or STEPS
        other = [(2.5,) * size if arm.name == "other" else course[:size] for arm in arms]
        return [(report(2.0, steps=size, whole=steps is None, losses=c), "") for c in other]

    Search(case(twin), twin, [remedy("idle", "x"), remedy("still", "x"), remedy("other", "x")], run)()
    assert [name for name, steps in asked if steps is None and "other" not in name] == []
    assert ("other", None) in asked


def test_the_budget_ends_the_search_between_rounds():
    world = World({}, otherwise=2.0)
    left = iter([1.0, 0.0])
    candidates = [remedy(f"r{i}", "x") for i in range(20)]
    found = Search(case(STUCK), STUCK, candidates, world, left=lambda: next(left))()
    assert found.exhausted and len({asked for asked, _ in world.asked}) < 20


def test_an_arm_without_a_report_is_kept_with_its_reason():
    def run(arms, steps):
        return [(None, "it was still going after 60 s") for _ in arms]

    found = Search(case(STUCK), STUCK, [remedy("a", "x")], run)()
    assert found.best is None and found.tried[0].note == "it was still going after 60 s"


@pytest.mark.parametrize("trivial", [math.nan, 2.0])
def test_a_good_remedy_ends_the_search(trivial):
    twin = report(2.0, trivial=trivial, kind="stuck")

    def run(arms, steps):
        asked.extend(arms)
        return [(report(0.1, trivial=trivial, steps=steps or STEPS, whole=steps is None), "") for _ in arms]

    asked: list = []
    found = Search(case(twin), twin, [remedy(f"r{i}", "x") for i in range(30)], run)()
    assert found.best is not None
    assert len(asked) < 12
