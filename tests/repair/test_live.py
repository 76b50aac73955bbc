"""Which remedies are tried on a run that goes on, for how long, and which of them is kept."""

import math

import pytest

from steadygrad.repair.effects.change import Change
from steadygrad.repair.live import HOPELESS, Course, beats, ladder, replaces, trial_length
from steadygrad.repair.remedy import Remedy

SGD = {"lr": 0.1, "momentum": 0.0}
ADAM = {"lr": 0.1, "betas": (0.9, 0.999)}
LR = Remedy("lr / 10", {"lr_factor": 0.1}, (), "tuning", 0.12, "")


def course(*losses, remedy=None, lost=0):
    return Course(remedy, list(losses), lost)


@pytest.mark.parametrize(("back", "steps"), [(0, 12), (4, 12), (5, 13), (52, 60), (500, 60)])
def test_a_trial_goes_past_the_failing_step_within_bounds(back, steps):
    assert trial_length(back) == steps


@pytest.mark.parametrize("group", [SGD, ADAM, {"lr": 0.1, "momentum": 0.9}])
def test_every_remedy_of_the_ladder_can_be_put_in_force(group):
    remedies = ladder(2.0, group)
    assert len({r.name for r in remedies}) == len(remedies) >= 5
    assert [r.intrusiveness for r in remedies] == sorted(r.intrusiveness for r in remedies)
    for remedy in remedies:
        assert Change(remedy.plan).active
        assert remedy.safety == "tuning"


def test_clip_of_the_ladder_is_learned_from_the_run():
    assert [r.plan["clip_norm"] for r in ladder(2.0, SGD) if "clip_norm" in r.plan] == [3.0]
    assert [r.plan["clip_norm"] for r in ladder(None, SGD) if "clip_norm" in r.plan] == [1.0]


def test_ladder_has_nothing_for_what_the_optimizer_lacks():
    assert not any({"beta2", "update_clip", "momentum"} & r.plan.keys() for r in ladder(1.0, SGD))
    assert any("momentum" in r.plan for r in ladder(1.0, {"momentum": 0.9}))
    assert any("update_clip" in r.plan for r in ladder(1.0, ADAM))


def test_a_course_is_judged_by_its_second_half():
    assert course(9.0, 9.0, 1.0, 2.0).end == 1.5
    assert course(1.0, 1.0, math.nan, 2.0).end == 2.0
    assert course().end == course(math.nan, math.inf).end == math.inf


def test_steps_that_come_to_nothing_are_counted_and_a_missing_loss_is_none():
    run = Course()
    for loss, applied in [(1.0, True), (math.nan, True), (1.0, False), (None, True)]:
        run.step(loss, applied)
    assert run.lost == 2 and not run.hopeless
    for _ in range(HOPELESS):
        run.step(math.inf, False)
    assert run.hopeless


@pytest.mark.parametrize(
    "bad",
    [
        course(1.0, 1.0, 10.0, 10.0),
        course(math.nan, math.nan),
        course(*[1.0] * 8, lost=3),
        Course(losses=[1.0] * 8, poisoned=True),
        Course(losses=[1.0] * 8, note="not for SGD"),
    ],
    ids=["blown up", "no loss", "skipped", "poisoned", "not applicable"],
)
def test_a_trial_that_is_no_way_to_go_on_never_wins(bad):
    assert bad.failed(1.0)
    assert not beats(bad, course(math.nan, math.nan), 1.0)
    assert not beats(bad, course(*[50.0] * 8), 1.0)


def test_a_level_below_zero_is_understood():
    assert not course(-5.0, -5.0).failed(-5.0)
    assert course(6.0, 6.0).failed(-5.0)


def test_what_lives_beats_a_twin_that_does_not():
    assert beats(course(*[1.0] * 8), course(*[math.nan] * 8), 1.0)
    assert beats(course(*[1.0] * 8), course(*[90.0] * 8), 1.0)


def test_a_better_loss_must_be_clearly_better():
    twin = course(*[1.0, 1.1] * 8)
    assert beats(course(*[0.8, 0.85] * 8), twin, 1.0)
    assert not beats(course(*[0.96, 1.06] * 8), twin, 1.0)  # within the margin
    assert not beats(course(*[0.2, 1.4] * 8), twin, 1.0)  # within the noise


def test_with_the_same_batches_noise_that_both_have_does_not_count():
    hard = [0.2, 1.4, 0.9, 3.0] * 5
    twin, arm = course(*hard), course(*[0.8 * loss for loss in hard])
    assert not beats(arm, twin, 2.0)
    assert beats(arm, twin, 2.0, paired=True)


def test_with_the_same_batches_bad_ones_are_held_against_nobody():
    twin, arm = course(*[2.0] * 8, lost=4), course(*[1.0] * 8, lost=4)
    assert not beats(arm, twin, 2.0)
    assert beats(arm, twin, 2.0, paired=True)
    assert not beats(course(*[1.0] * 8, lost=7), course(*[2.0] * 8, lost=1), 2.0, paired=True)


def test_the_less_intrusive_of_two_that_are_near_stays():
    assert not replaces(course(*[0.98] * 8), course(*[1.0] * 8))
    assert replaces(course(*[0.5] * 8), course(*[1.0] * 8))


def test_names_for_people():
    assert course().name == "the guard alone"
    assert course(remedy=LR).name == "lr / 10"
