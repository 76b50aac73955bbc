"""Curricula: a plain sort as oracle, the prefix that is open, uniform draws, new difficulties."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadygrad.schedule import (
    CurriculumSampler,
    EpochCurriculumSampler,
    difficulties,
    linear_pacing,
)

scores = st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(scores=scores, start=st.floats(0, 1), total=st.integers(1, 20), seed=st.integers(0, 99))
def test_every_draw_is_from_the_open_prefix(scores, start, total, seed):
    pace = partial(linear_pacing, total_steps=total, start=start)
    sampler = CurriculumSampler(scores, pace, samples_per_step=3, num_samples=30, seed=seed)
    easiest = sorted(range(len(scores)), key=lambda i: scores[i])  # stable, as ours
    drawn = list(sampler) + list(sampler)
    for k, index in enumerate(drawn):
        open_now = max(1, math.ceil(pace(k // 3) * len(scores) - 1e-9))
        assert index in easiest[:open_now]


@settings(max_examples=60, deadline=None)
@given(scores=scores, start=st.floats(0, 1), total=st.integers(1, 4))
def test_epochs_visit_exactly_the_open_prefix(scores, start, total):
    pace = partial(linear_pacing, total_steps=total, start=start)
    sampler = EpochCurriculumSampler(scores, pace)
    easiest = sorted(range(len(scores)), key=lambda i: scores[i])
    for epoch in range(total + 2):
        open_now = max(1, math.ceil(pace(epoch) * len(scores) - 1e-9))
        assert sorted(sampler) == sorted(easiest[:open_now])


def test_draws_are_uniform_over_the_open_prefix():
    sampler = CurriculumSampler(range(10), lambda step: 0.5, samples_per_step=8, num_samples=20_000)
    counts = Counter(sampler)
    assert set(counts) == set(range(5))
    chi2 = sum((n - 4000) ** 2 / 4000 for n in counts.values())
    assert chi2 < 25  # 4 degrees of freedom: one in 20,000 seeds would exceed it


def test_neighbouring_seeds_and_steps_share_nothing():
    draw = [list(CurriculumSampler(range(1000), lambda step: 1.0, 50, 500, seed=k)) for k in range(2)]
    steps = [tuple(d[i : i + 50]) for d in draw for i in range(0, 500, 50)]
    assert len(set(steps)) == 20


def test_rounding_does_not_decide_how_many_are_open():
    for share, opened in (
        (0.29, 29),
        (0.07, 7),
        (0.291, 30),
        (0.0, 1),
        (1.0, 100),
    ):  # 0.29 * 100 is 28.999...
        assert len(EpochCurriculumSampler(range(100), lambda epoch, share=share: share)) == opened


def test_ties_keep_their_order_and_negation_is_the_anti_curriculum():
    half = partial(linear_pacing, total_steps=2, start=0.5)
    assert sorted(EpochCurriculumSampler([1.0] * 600, half)) == list(range(300))
    assert sorted(EpochCurriculumSampler([-x for x in range(6)], half)) == [3, 4, 5]


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 2],
        np.array([3.0, 1.0, 2.0], dtype=np.float32),
        torch.tensor([3.0, 1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([3, 1, 2], dtype=torch.uint8),
        torch.tensor([3.0, 1.0, 2.0], requires_grad=True),
        [math.inf, -math.inf, 0.0],
        [1.0 + 1e-12, 1.0, 1.0 + 5e-13],
    ],
    ids=str,
)
def test_kinds_of_numbers(values):
    sampler = EpochCurriculumSampler(values, partial(linear_pacing, total_steps=2, start=0.0))
    assert [sorted(sampler) for _ in range(3)] == [[1], [1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    "build",
    [lambda x: CurriculumSampler(x, lambda t: 1.0, 2), lambda x: EpochCurriculumSampler(x, lambda t: 1.0)],
)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, math.nan, 1.0, math.nan], r"nan for 2 of 4 samples, the first are \[1, 3\]"),
        ([], "one number for each sample"),
        (np.zeros((2, 2)), r"got shape \(2, 2\)"),
        (torch.zeros(2, dtype=torch.complex64), "real"),
    ],
)
def test_bad_difficulty(build, values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(values)


def test_difficulties_of_a_dataset():
    class Words(torch.utils.data.Dataset):
        words = ["tree", "a", "many"]

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return self.words[i]

    found = difficulties(Words(), len)
    assert found.tolist() == [4, 1, 4] and found.dtype == torch.float64
    assert difficulties(Words(), lambda w: torch.tensor(len(w))).tolist() == [4, 1, 4]
    with pytest.raises(ValueError, match="nan for 3 of 3"):
        difficulties(Words(), lambda w: math.nan)


@pytest.mark.parametrize("share", [math.nan, -0.1, 1.1])
def test_bad_pacing(share):
    for sampler in (
        CurriculumSampler([1.0], lambda t: share, 1),
        EpochCurriculumSampler([1.0], lambda t: share),
    ):
        with pytest.raises(ValueError, match="the pacing's share"):
            list(sampler)
    with pytest.raises(TypeError, match="pacing is a function"):
        EpochCurriculumSampler([1.0], 0.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="multiple of num_replicas = 2"):
        CurriculumSampler([1.0], lambda t: 1.0, 3, num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="samples_per_step"):
        CurriculumSampler([1.0], lambda t: 1.0, 0)
    with pytest.raises(ValueError, match="num_samples"):
        CurriculumSampler([1.0], lambda t: 1.0, 1, num_samples=0)


# ------------------------------------------------------------------ new difficulties
def third(scores, seed=0):
    return EpochCurriculumSampler(scores, lambda epoch: 1 / 3, seed)


def test_new_difficulties_count_from_the_next_epoch():
    sampler = third(range(9))
    running = iter(sampler)
    seen = [next(running)]
    sampler.set_difficulty([-x for x in range(9)])
    assert sorted(seen + list(running)) == [0, 1, 2]
    assert sorted(sampler) == sorted(sampler) == [6, 7, 8]


@pytest.mark.parametrize("consumed", [1, 2, 3])
def test_new_difficulties_are_resumed_with_the_old_order_of_the_running_epoch(consumed):
    sampler = third(range(9))
    running = iter(sampler)
    drawn = [next(running) for _ in range(consumed)]
    sampler.set_difficulty([-x for x in range(9)])
    state = sampler.state_dict(consumed)
    whole = [drawn + list(running), list(sampler), list(sampler)]
    assert [sorted(e) for e in whole] == [[0, 1, 2], [6, 7, 8], [6, 7, 8]]
    fresh = third(range(9))
    fresh.load_state_dict(state)
    assert [list(fresh) for _ in range(3)] == [whole[0][consumed:], *whole[1:]]


def test_state_of_one_without_new_difficulties_takes_them_back():
    sampler = third(range(9))
    state = sampler.state_dict(0)
    sampler.set_difficulty([-x for x in range(9)])
    list(sampler)
    sampler.load_state_dict(state)
    assert sorted(sampler) == [0, 1, 2]


def test_bad_new_difficulties_change_nothing():
    sampler = third(range(9))
    for bad in ([1.0] * 8, [math.nan] * 9):
        with pytest.raises(ValueError, match="difficulty"):
            sampler.set_difficulty(bad)
    state = sampler.state_dict(0)
    with pytest.raises(ValueError, match="permutation of 9"):
        sampler.load_state_dict({**state, "order": torch.zeros(9, dtype=torch.long)})
    assert sorted(sampler) == [0, 1, 2]
