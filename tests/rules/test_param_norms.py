"""Levels learned in blocks are those learned step by step."""

import math

import numpy as np
import pytest

from steadygrad.rules.param_norms import BLOCK, RATE, ParamNorms


def one_by_one(rows):
    """The obvious twin."""
    level = []
    for row in rows:
        if len(row) != len(level):
            level = [None] * len(row)
        for i, norm in enumerate(row.tolist()):
            if 0 < norm < math.inf:
                log = float(np.log10(np.float64(norm)))
                level[i] = log if level[i] is None else level[i] + RATE * (log - level[i])
    return level


def rows_of(seed, count, width=7):
    draw = np.random.default_rng(seed)
    rows = draw.lognormal(0, 5, (count, width)).astype([np.float32, np.float64][seed % 2])
    for bad in (np.nan, np.inf, 0.0):
        rows[draw.random(rows.shape) < 0.15] = bad
    return list(rows)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ask_every", [1, 5, BLOCK, 1000])
def test_blocks_change_no_number(seed, ask_every):
    rows = rows_of(seed, 3 * BLOCK + 5)
    norms = ParamNorms()
    for t, row in enumerate(rows, 1):
        norms.push(row)
        if t % ask_every == 0:
            assert norms.state() == one_by_one(rows[:t])
    assert norms.state() == one_by_one(rows)


@pytest.mark.parametrize("first", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_parameters_added_and_taken_away_start_afresh(first):
    rows = rows_of(0, first) + rows_of(1, 3, width=9) + rows_of(2, 2, width=0) + rows_of(3, 2, width=3)
    norms = ParamNorms()
    for row in rows:
        norms.push(row)
    assert norms.state() == one_by_one(rows[-2:])


def test_only_a_block_waits():
    norms = ParamNorms()
    rows = rows_of(0, 10 * BLOCK)
    for row in rows:
        norms.push(row)
        assert len(norms._waiting) < BLOCK


def test_a_state_put_back_forgets_what_waited():
    norms = ParamNorms()
    norms.push(np.array([10.0, np.nan]))
    state = norms.state()
    norms.push(np.array([1e9, 1e9]))
    norms.load(state)
    assert state == norms.state() == [1.0, None]
