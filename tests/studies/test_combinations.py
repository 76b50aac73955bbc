"""The factorial study: its design, its arithmetic, and one short run."""

from __future__ import annotations

import random
from itertools import combinations, product

import pytest

from studies.combinations import run
from studies.combinations.effects import effects_of
from studies.combinations.nets import NETS

NAMES = list(run.FACTORS)


def test_design_mixes_no_effect_of_one_or_two_factors_with_another():
    """Every contrast of one or two factors is orthogonal to every other: resolution V."""
    rows = [[1 if on else -1 for on in setting] for setting in run.design()]
    assert len(rows) == 64 and len(set(map(tuple, rows))) == 64
    groups = [(i,) for i in range(8)] + list(combinations(range(8), 2))
    columns = {}
    for group in groups:
        column = [1] * 64
        for i in group:
            column = [c * row[i] for c, row in zip(column, rows, strict=True)]
        columns[group] = column
    for a, b in combinations(groups, 2):
        assert sum(x * y for x, y in zip(columns[a], columns[b], strict=True)) == 0, (a, b)
    assert all(sum(c) == 0 for c in columns.values())


def test_effects_are_found_again():
    """A made-up answer with known effects and noise between seeds."""
    rng = random.Random(0)
    settings = [s for s in product((False, True), repeat=3) for _ in range(30)]
    sign = [[1 if on else -1 for on in s] for s in settings]
    answers = [5 + 2 * a - 1 * c + 3 * a * b + rng.gauss(0, 1) for a, b, c in sign]
    found = effects_of(["a", "b", "c"], settings, answers)
    wanted = {("a",): 4, ("b",): 0, ("c",): -2, ("a", "b"): 6, ("a", "c"): 0, ("b", "c"): 0}
    assert found.keys() == wanted.keys()
    for key, size in wanted.items():
        assert found[key].size == pytest.approx(size, abs=4 * found[key].error)
        assert found[key].clear == (size != 0)
    assert found[("a",)].error == pytest.approx(2 / 240**0.5, rel=0.15)


@pytest.mark.parametrize("net", NETS)
def test_one_run(net):
    on = run.Setting(True, True, True, True, True, True, True, False)._asdict()
    first, second = (run.measure(3, True, net, on) for _ in range(2))
    assert first == second and first["steps"] == 4 and 0 < first["loss"] < 5


def test_a_run_that_blows_up_is_told():
    bare = run.Setting(False, False, False, True, False, False, False, True)
    result = run.measure(0, False, "MLP", bare._asdict())
    assert result["loss"] is None and result["steps"] < 150
    assert not run.survived(result) and run.capped(result) == 2 * run.CHANCE


def test_table_holds_what_was_measured():
    rng = random.Random(1)
    runs = [
        {
            "net": net,
            "seed": seed,
            "setting": s._asdict(),
            "loss": 0.5 if s.norm else None,
            "accuracy": 0.9,
            "steps": 1,
        }
        for net in NETS
        for s in run.design()
        for seed in (0, 1)
    ]
    for r in rng.sample(runs, 20):
        r["loss"] = 0.4  # the spread between seeds
    text = run.table(runs, run.analysed(runs))
    assert "| MLP | 128 |" in text and "norm" in text
