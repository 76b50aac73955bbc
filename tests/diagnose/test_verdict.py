"""Each kind of verdict, on courses made for it and on those next to it."""

import dataclasses
import math
import random

import pytest

from steadygrad.diagnose.course import Course
from steadygrad.diagnose.verdict import FAILS, GOOD, MIN_STEPS, STUCK, judge
from steadygrad.records import LossTerm, Portrait


def course(start, end, n=200, noise=0.0, seed=0):
    rng = random.Random(seed)
    fall = [start + (end - start) * min(1.0, i / (0.7 * n)) + noise * rng.gauss(0, 1) for i in range(n)]
    return Course([start] * 3 + fall)


def term(value, trivial, **fields):
    known = {
        "kind": "mse", "weight": 1.0, "reduction": "mean", "elements": 32, "prediction_rms": 1.0,
        "target_rms": 1.0, "target_mean": 0.0, "target_std": 1.0,
    }  # fmt: skip
    return LossTerm(value=value, trivial=trivial, **(known | fields))


def portraits(start, end, trivial=1.0, **fields):
    return [Portrait(terms=(term(value, trivial, **fields),), nodes=9) for value in (start, end)]


def kind(*args, **options):
    return judge(*args, **options).kind


def test_every_kind_has_a_probability():
    from typing import get_args

    from steadygrad.diagnose.verdict import Kind

    assert set(get_args(Kind)) == FAILS.keys() and all(0 < p < 1 for p in FAILS.values())


@pytest.mark.parametrize("poisoned, stopped, expected", [(True, True, "nonfinite"), (False, True, "stopped")])
def test_what_is_known_of_the_end_comes_before_the_loss(poisoned, stopped, expected):
    assert kind(course(2, 0.1), [], poisoned=poisoned, stopped=stopped) == expected
    assert kind(Course(), [], poisoned=poisoned, stopped=stopped) == expected


def test_nan_loss_is_half_of_the_last_tenth():
    good, tail = [1.0] * 180, [1.0] * 20
    for bad in (math.nan, math.inf, -math.inf):
        assert kind(Course(good + [bad] * 11 + tail[:9]), []) == "nan_loss"
        assert kind(Course(good + [bad] * 10 + tail[:10]), []) != "nan_loss"
    assert kind(Course([math.nan] * 3), []) == "nan_loss"


def test_a_short_run_is_not_judged():
    assert kind(Course(), []) == "unknown"
    assert kind(Course([1.0] * (MIN_STEPS - 1)), []) == "unknown"
    assert kind(Course([1.0] * MIN_STEPS), []) == "flat"


@pytest.mark.parametrize(
    "end, expected",
    [
        (11.0, "exploded"),
        (1.1, "stuck"),
        (1.001 - STUCK, "stuck"),
        (0.999 - STUCK, "ambiguous"),
        (1.001 - GOOD, "ambiguous"),
        (0.999 - GOOD, "learned"),
        (0.0, "learned"),
    ],
)
def test_against_the_best_constant_prediction(end, expected):
    found = judge(course(1.0, end), portraits(1.0, end))
    assert found.kind == expected and found.progress == pytest.approx(1 - end) and found.trivial == 1.0
    assert found.reason and found.end == pytest.approx(end)


def test_a_high_start_is_no_explosion_at_the_constant_prediction():
    assert kind(course(50.0, 12.0), portraits(50.0, 12.0)) == "stuck"


def test_terms_that_are_not_all_of_the_loss_are_judged_by_themselves():
    """A penalty of 30 stands beside the error: the loss hardly falls, and the error is learned."""
    assert kind(course(31.0, 30.1), portraits(1.0, 0.1)) == "learned"
    assert kind(course(31.0, 30.99), portraits(1.0, 0.99)) == "stuck"
    assert math.isnan(judge(course(31.0, 30.1), portraits(1.0, 0.1)).trivial)


def test_a_run_that_learns_after_its_last_portrait_has_learned():
    losses = Course([1.0] * 120 + [1.0 - 0.9 * i / 20 for i in range(20)] + [0.1] * 10)
    seen = [dataclasses.replace(p, loss=1.0) for p in portraits(1.0, 1.0)]
    assert kind(losses, seen) == "learned"
    assert kind(losses, portraits(1.0, 1.0)) == "stuck"  # the loss of their step is not known
    other = [dataclasses.replace(p, loss=3.0) for p in portraits(1.0, 1.0)]
    assert kind(losses, other) == "stuck"  # a penalty may be what has fallen


def test_one_learned_term_of_several_will_do():
    two = [Portrait(terms=(term(a, 1.0), term(b, 1.0)), nodes=9) for a, b in ((1.0, 1.0), (0.1, 1.0))]
    assert kind(course(20.0, 19.0), two) == "learned"


@pytest.mark.parametrize("fields", [{"target_moves": True}, {"trivial": math.nan}, {"trivial": 0.0}])
def test_where_there_is_no_such_prediction_the_start_is_what_is_left(fields):
    fields = dict(fields)
    trivial = fields.pop("trivial", 1.0)
    found = judge(course(1.0, 0.9), portraits(1.0, 0.9, trivial, **fields))
    assert found.kind == "ok" and math.isnan(found.progress)


@pytest.mark.parametrize(
    "start, end, noise, expected",
    [
        (1.0, -1001.0, 0.0, "unbounded"),
        (1.0, -999.0, 0.0, "ok"),
        (1.0, 3.1, 0.0, "exploded"),
        (1.0, 2.9, 0.0, "worse"),
        (1.0, 1.45, 0.0, "worse"),
        (1.0, 1.35, 0.0, "idle"),
        (1.0, 1.0, 0.0, "flat"),
        (1.0, 1.0, 0.05, "idle"),
        (1.0, 0.9, 0.0, "ok"),
        (-5.0, -9.0, 0.0, "ok"),
        (-5.0, -3.0, 0.0, "worse"),
        (1e-6, 1e-7, 0.0, "ok"),
    ],
)
def test_against_its_own_start(start, end, noise, expected):
    found = judge(course(start, end, noise=noise), [])
    assert found.kind == expected, found
    assert math.isnan(found.progress) and math.isnan(found.trivial)


def test_a_loss_far_below_its_own_peak_has_come_back():
    """From 1 to a million, and down to 4 again: it is not exploding any longer."""
    values = [1.0] * 5 + [1e6] * 20 + [4.0] * 400
    assert kind(Course(values), []) != "exploded"
    assert kind(Course([1.0] * 5 + [4.0] * 400), []) == "exploded"


def test_with_several_optimizers_a_loss_that_stays_is_not_held_against_it():
    """A discriminator at chance is what is wanted; one that explodes is not."""
    assert kind(course(0.69, 0.69), portraits(0.69, 0.69, 0.69), optimizers=2) == "ok"
    assert kind(course(0.69, 1.2), [], optimizers=2) == "ok"
    assert kind(course(0.69, 50.0), [], optimizers=2) == "exploded"
