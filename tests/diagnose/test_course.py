"""A thinned course against all of its losses."""

import math
import random
from statistics import mean, median

import pytest

from steadygrad.diagnose.course import KEPT, Course


def losses(n, kind, seed=0):
    rng = random.Random(seed)
    shape = {
        "falls": lambda t: 3 * math.exp(-4 * t),
        "rises": lambda t: 1 + 5 * t,
        "bends": lambda t: (t - 0.6) ** 2,
    }
    out = [shape[kind](i / n) + 0.01 * rng.gauss(0, 1) for i in range(n)]
    return out


def end_of(values):
    """The median of the means of five blocks of the last tenth, of the whole list."""
    last = values[-max(5, len(values) // 10) :]
    blocks = [last[round(i * len(last) / 5) : round((i + 1) * len(last) / 5)] for i in range(5)]
    return median(mean(x for x in block if math.isfinite(x)) for block in blocks if block)


@pytest.mark.parametrize("kind", ["falls", "rises", "bends"])
@pytest.mark.parametrize("n", [1, 5, 50, KEPT, KEPT + 1, 3333, 100_000])
def test_start_end_and_spread_are_those_of_the_whole_run(n, kind):
    values = losses(n, kind)
    course = Course(values)
    assert course.steps == n and len(course._kept) <= KEPT
    assert course.start == median(values[:3])
    assert course.end == pytest.approx(end_of(values), abs=0.01)
    assert course.largest == pytest.approx(max(map(abs, values)))
    if n > 500:
        assert course.spread() == pytest.approx(0.01, rel=0.3)


def test_thinning_keeps_steps_that_are_evenly_apart_from_the_first_on():
    course = Course([float(i) for i in range(10_000)])
    apart = {b - a for a, b in zip(course._kept, course._kept[1:], strict=False)}
    assert course._kept[0] == 0.0 and apart == {16.0} and course._kept[-1] > 9_980


def test_values_that_are_not_finite_are_counted_and_do_not_move_the_medians():
    rng = random.Random(1)
    values = [math.nan if rng.random() < 0.2 else x for x in losses(100_000, "falls")]
    course = Course([math.inf, -math.inf, *values])
    assert course.start == median([x for x in values if math.isfinite(x)][:3])
    assert course.end == pytest.approx(end_of(values), abs=0.01)
    assert course.finite_share == pytest.approx(0.8, abs=0.1)
    assert math.isfinite(course.largest) and course.spread() > 0


@pytest.mark.parametrize("n", [1000, 4200, 30_000])
def test_the_end_of_a_run_with_batches_of_one_is_near_the_mean_of_all_samples(n):
    rng = random.Random(2)
    values = [10.0 if rng.random() < 0.1 else 0.01 for _ in range(n)]  # nine of ten are easy
    assert median(values) == 0.01
    assert 0.3 < Course(values).end < 2.0


def test_two_spikes_at_the_end_do_not_move_it():
    values = [1.0] * 1000
    values[905] = values[995] = 1e6
    assert Course(values).end == 1.0


def test_a_course_of_nothing_finite():
    for course in (Course(), Course([math.nan] * 50)):
        assert math.isnan(course.start) and math.isnan(course.end)
        assert math.isnan(course.spread()) and course.largest == 0.0
    assert math.isnan(Course().finite_share) and Course([math.nan] * 50).finite_share == 0.0


def test_a_slow_trend_is_no_spread():
    assert Course([1000.0 - i for i in range(1000)]).spread() == pytest.approx(1.4826 / math.sqrt(2))
    assert Course([5.0] * 100).spread() == 0.0
