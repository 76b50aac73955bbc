"""What a run is worth: in the script's own units, against a constant prediction and against the untouched run."""

import math

import pytest

from steadygrad.records import LossTerm
from steadygrad.repair.score import beats, level, score, trains
from tests.repair.worlds import STEPS, report


def term(kind, value, trivial):
    return LossTerm(kind, value, trivial, 1.0, "mean", 8, 1.0, 1.0, 0.0, 1.0)


TWIN = report(2.0)


def test_the_level_is_the_logarithm_of_what_is_lost_over_what_a_constant_prediction_loses():
    assert level(report(0.5), TWIN) == pytest.approx(math.log(0.25))
    assert level(TWIN, TWIN) == pytest.approx(0.0)


def test_losses_below_a_fiftieth_of_the_trivial_one_are_all_equally_good():
    assert level(report(1e-9), TWIN) == level(report(0.03), TWIN)


@pytest.mark.parametrize("kind", ["nonfinite", "nan_loss", "exploded", "stopped", "unbounded"])
def test_a_run_that_came_to_grief_is_worth_nothing(kind):
    assert level(report(0.1, kind=kind), TWIN) == math.inf
    assert level(report(math.nan), TWIN) == math.inf


def test_a_loss_without_a_trivial_value_is_compared_with_the_start_of_the_untouched_run():
    twin = report(4.0, start=4.0, trivial=math.nan)
    assert level(report(1.0, start=9.0, trivial=math.nan), twin) == pytest.approx(math.log(0.25))


def test_a_loss_that_may_be_negative_counts_by_how_far_it_came():
    twin = report(-1.0, start=-1.0, trivial=math.nan, kind="flat")
    assert level(twin, twin) == pytest.approx(0.0)
    assert level(report(-1.5, trivial=math.nan), twin) == pytest.approx(math.log(0.5))


def test_one_huge_part_of_a_loss_does_not_buy_the_verdict():
    fits_value = [term("mse", 1.0, 1e6), term("cross_entropy", 2.0, 2.0)]
    fits_both = [term("mse", 1e5, 1e6), term("cross_entropy", 0.2, 2.0)]
    assert level(report(3.0, trivial=1e6, terms=fits_both), TWIN) < level(
        report(3.0, trivial=1e6, terms=fits_value), TWIN
    )


def test_what_was_changed_costs_a_little():
    assert score(report(0.5), TWIN, 0.5) == pytest.approx(level(report(0.5), TWIN) + 0.15)


def test_only_a_clear_improvement_beats_the_untouched_run():
    half_good = report(1.5)
    assert half_good.outcome.verdict.kind == "ambiguous"
    assert beats(report(0.9), half_good) and not beats(report(1.0), half_good)


def test_less_is_asked_for_where_the_untouched_run_has_learned_nothing():
    assert beats(report(1.5), TWIN) and not beats(report(1.7), TWIN)
    assert beats(report(1.9), report(math.nan)) and not beats(report(2.1), report(math.nan))
    assert beats(report(1.7), TWIN, math.log(0.9)) and not beats(report(1.5), TWIN, math.log(0.7))


def test_a_run_that_skips_most_of_its_steps_does_not_train():
    assert trains(report(0.1)) and not trains(report(0.1, skipped=STEPS // 2 + 1))
    assert not trains(report(2.0)) and not trains(report(math.nan))
