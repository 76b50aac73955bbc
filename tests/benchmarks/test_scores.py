"""Scores against values worked out by hand, and against scikit-learn where it has the same."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from benchmarks.scores import (
    Bin,
    Share,
    confusions,
    f1_by_class,
    lead_time,
    macro_f1,
    onset,
    precision_recall,
    reliability,
    share,
    to_json,
    wilson,
)


def test_wilson_of_eight_in_ten_and_of_half_a_hundred():
    # 8 of 10, z^2 = 3.8415: middle (.8 + .19207) / 1.38415, half 1.96 sqrt(.016 + .0096037) / 1.38415
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    # 50 of 100: .5 -+ 1.96 sqrt(.0025 + .0000960) / 1.038415
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)


def test_wilson_at_the_ends():
    low, high = wilson(0, 20)
    assert low == 0.0 and high == pytest.approx(3.8415 / 23.8415, abs=1e-5)  # z^2 / (n + z^2)
    assert wilson(20, 20) == pytest.approx((1 - high, 1.0))
    assert all(math.isnan(x) for x in wilson(0, 0))


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_solves_its_equation(pair):
    hits, of = pair
    low, high = wilson(hits, of)
    p = hits / of
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1
    for end in (
        low,
        high,
    ):  # the ends are where p is 1.96 standard errors away, with the error of the end itself
        assert (p - end) ** 2 == pytest.approx(3.841458820694124 * end * (1 - end) / of, abs=1e-9)


def test_share_says_hits_and_interval():
    assert str(Share(8, 10)) == "0.800 (8/10, 0.49-0.94)"
    assert str(Share(0, 0)) == "-" and math.isnan(Share(0, 0).value)
    assert Share(0, 0).to_json() == {"hits": 0, "of": 0, "value": None, "interval": None}
    assert share([True, [], "x", None]) == Share(2, 4)


def test_precision_and_recall():
    flagged = [True, True, True, False, False]
    failed = [True, False, True, True, False]
    assert precision_recall(flagged, failed) == (Share(2, 3), Share(2, 3))
    assert precision_recall([False], [True]) == (Share(0, 0), Share(0, 1))
    with pytest.raises(ValueError):
        precision_recall([True], [])


def test_f1_by_class_by_hand():
    told = [(["a"], "a"), (["a"], "b"), (["b"], "b"), (["b"], "elsewhere"), (["c"], None)]
    # a: 1 hit of 2 true, 1 said: 2/3. b: 1 hit, 2 true, 2 said: 1/2. c: 0 of 1.
    assert f1_by_class(told) == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 0.0})
    assert macro_f1(told) == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert math.isnan(macro_f1([]))


def test_another_name_that_counts_as_right_is_the_canonical_one():
    assert f1_by_class([(("a", "b"), "b"), (("b",), "b")]) == {"a": 1.0, "b": 1.0}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1))
def test_f1_is_that_of_scikit_learn(pairs):
    true, said = zip(*pairs, strict=True)
    labels = sorted(set(true))
    expected = f1_score(true, said, labels=labels, average=None, zero_division=0.0)
    assert list(f1_by_class(((t,), s) for t, s in pairs).values()) == pytest.approx(list(expected))


def test_confusions_are_counted_most_often_first():
    told = [(("a",), "b"), (("a",), "b"), (("a", "c"), "c"), (("b",), None)]
    assert confusions(told) == [("a", "b", 2), ("b", "nothing", 1)]


def test_reliability_by_hand():
    table, error = reliability([(0.95, True), (0.91, False), (0.3, False), (1.0, True)])
    assert len(table) == 10
    assert table[3] == Bin(0.3, 0.4, 1, 0.3, 0.0)  # a bin holds its lower end
    assert (
        table[9].count == 3
        and table[9].said == pytest.approx(2.86 / 3)
        and table[9].was == pytest.approx(2 / 3)
    )
    assert error == pytest.approx((abs(2.86 - 2) + 0.3) / 4)
    assert table[0].count == 0 and math.isnan(table[0].was)


def test_what_is_told_as_often_as_it_is_right_has_no_error():
    assert reliability([(0.5, True), (0.5, False)])[1] == 0.0
    assert math.isnan(reliability([])[1])


@pytest.mark.parametrize("tenth", range(11))
def test_every_tenth_falls_into_its_own_bin(tenth):
    table, _ = reliability([(tenth / 10, True)])
    assert [b.count for b in table].index(1) == min(tenth, 9)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 2.0, 10.0, 10.1], 3),
        ([1.0, math.nan, 50.0], 1),
        ([math.inf, 1.0], 0),
        ([1.0, -math.inf], 1),
        ([-2.0, -100.0, 19.0, 21.0], 3),
        ([0.5, 0.4], None),
        ([], None),
    ],
)
def test_onset(losses, expected):
    assert onset(losses) == expected


def test_lead_time_by_hand():
    found = lead_time([(30, 10), (30, 28), (30, 30), (30, 31), (30, 32), (30, None)])
    assert (found.runs, found.spoke) == (6, 5)
    assert found.before == Share(2, 6)  # at the onset is not before it
    assert found.by_next == Share(4, 6)
    assert found.quartiles == (-1.0, 0.0, 2.0)  # of 20, 2, 0, -1, -2
    assert found.to_json()["lead_quartiles"] == [-1.0, 0.0, 2.0]


def test_who_never_spoke_has_no_lead():
    found = lead_time([(5, None)])
    assert found.by_next == Share(0, 1) and all(map(math.isnan, found.quartiles))
    assert found.to_json()["lead_quartiles"] is None


@given(st.lists(st.tuples(st.integers(0, 99), st.one_of(st.none(), st.integers(0, 99))), min_size=1))
def test_lead_time_against_a_count(runs):
    found = lead_time(runs)
    leads = [a - b for a, b in runs if b is not None]
    assert found.before.hits == sum(x >= 1 for x in leads) <= found.by_next.hits <= found.spoke == len(leads)
    if leads:
        assert found.quartiles[1] == pytest.approx(float(np.median(leads)))


def test_json_has_no_nan():
    plain = to_json(
        {"a": Share(1, 2), "b": [Bin(0.0, 0.1, 0, math.nan, math.nan)], "c": {"d": (math.inf, 1)}}
    )
    assert plain["b"] == [{"low": 0.0, "high": 0.1, "count": 0, "said": None, "was": None}]
    assert plain["c"] == {"d": [None, 1]} and plain["a"]["hits"] == 1
    json.dumps(plain, allow_nan=False)
