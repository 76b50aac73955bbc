"""The runner of the studies: what passes, and what is kept."""

import math

import pytest
from matplotlib.figure import Figure

from studies import claim
from studies.claim import Study, Value, by_seed, condition, each, ratios, table


def value(low, high, **options):
    return Value("x", "1", low, high, each("x"), **options)


@pytest.mark.parametrize(
    ("of", "numbers", "passed"),
    [
        (value(0, 1), [0.0, 1.0, 0.5], True),
        (value(0, 1), [0.0, 1.1, 0.5], False),
        (value(0, 1, needed=2), [0.0, 1.1, 0.5], True),
        (value(0, 1, needed=2), [0.0, 1.1, 2.0], False),
        (value(0, 1), [0.5, math.nan, 0.5], False),
        (value(0, math.inf), [], False),
        (value(0, 1, control=True), [2.0, 2.0, 0.5], True),
        (value(0, 1, needed=1, control=True), [2.0, 2.0, 0.5], False),
    ],
)
def test_a_value_passes(of, numbers, passed):
    judged = of.judge([{"x": x, "seed": i} for i, x in enumerate(numbers)])
    assert judged.passed is passed and judged.measured == pytest.approx(numbers, nan_ok=True)


def test_condition_in_words():
    runs = [{"x": 1.0, "seed": s} for s in range(3)]
    assert condition(value(0, 1).judge(runs)) == "0 to 1"
    assert condition(value(-math.inf, 1).judge(runs)) == "at most 1"
    assert (
        condition(value(2, math.inf, needed=2, control=True).judge(runs))
        == "not at least 2 on 2 of 3 (control)"
    )
    assert "**fail**" in table([value(2, 3).judge(runs)]) and "| pass |" in table([value(0, 3).judge(runs)])


def test_numbers_of_arms_and_seeds():
    runs = [{"arm": a, "seed": s, "x": a * 10.0 + s} for a in (1, 2) for s in (0, 1)]
    assert each("x", arm=2)(runs) == [20.0, 21.0]
    assert ratios("x", {"arm": 2}, {"arm": 1})(runs) == [2.0, 21 / 11]
    assert by_seed(lambda mine: sum(r["x"] for r in mine))(runs) == [30.0, 32.0]


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.setattr(claim, "HERE", tmp_path)
    monkeypatch.setattr(claim, "IMAGES", tmp_path)
    (tmp_path / "toy").mkdir()
    return Study("toy", [{"arm": 1}, {"arm": 2}], [value(0, 3)], measure, lambda runs: Figure())


def measure(seed, smoke, arm):
    return {"x": math.inf if arm == 2 and seed == 0 else float(arm), "smoke": smoke}


def test_results_are_kept_as_they_were(study):
    runs = list(study.carry_out(study.jobs()))
    study.save(runs[::-1])
    kept = study.load()
    assert kept["runs"] == runs and kept["seeds"] == [0, 1, 2] and study.picture.exists()
    assert kept["passed"] is False and kept["values"][0]["measured"][3] == math.inf
    assert {"torch", "python", "hardware"} <= kept["environment"].keys()


def test_unfinished_results_have_no_verdict(study):
    jobs = study.jobs()
    study.save(list(study.carry_out(jobs[:2])))
    kept = study.load()
    assert kept["passed"] is None and kept["values"] == [] and not study.picture.exists()
    assert {study.key_of(run) for run in kept["runs"]} == {claim.key(job) for job in jobs[:2]}


def test_smoke_has_one_seed(study):
    assert [run["smoke"] for run in study.carry_out(study.jobs(smoke=True), smoke=True)] == [True, True]


@pytest.mark.slow
def test_processes_give_the_same(study):
    jobs = study.jobs()[3:]
    here, there = (sorted(study.carry_out(jobs, processes=p), key=lambda r: r["seed"]) for p in (1, 2))
    assert [{**r, "seconds_taken": 0} for r in here] == [{**r, "seconds_taken": 0} for r in there]
