"""Batch sizes: formulas, ramps over samples and steps, what torch's BatchSampler gives, accumulation."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler

from steadygrad import schedule as s


@given(
    start=st.integers(1, 20),
    growth=st.integers(0, 40),
    multiple=st.integers(1, 8),
    ramp=st.integers(1, 10**12),
    seen=st.lists(st.integers(0, 2 * 10**12), min_size=2, max_size=5),
)
def test_linear_ramp(start, growth, multiple, ramp, seen):
    low, high = start * multiple, (start + growth) * multiple
    f = partial(s.linear_batch_size, start=low, end=high, ramp_samples=ramp, multiple_of=multiple)
    sizes = [f(n) for n in sorted(seen)]
    assert sizes == sorted(sizes) and all(low <= b <= high and b % multiple == 0 for b in sizes)
    assert f(0) == low and f(ramp) == high
    for n in seen:
        exact = low + (high - low) * min(1, n / ramp)
        assert exact - multiple * (1 + 1e-9) - 1e-6 <= f(n) <= exact + 1e-6


@given(
    stairs=st.integers(1, 12),
    increment=st.integers(1, 9),
    ramp=st.integers(1, 10**9),
    n=st.integers(0, 10**9),
)
def test_stepwise_ramp(stairs, increment, ramp, n):
    end = 4 + stairs * increment
    f = partial(s.stepwise_batch_size, start=4, end=end, increment=increment, ramp_samples=ramp)
    assert f(n) == min(end, 4 + increment * (n * stairs // ramp)) and f(ramp) == end and f(0) == 4


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: s.linear_batch_size(0, 0, 4, 10), "start"),
        (lambda: s.linear_batch_size(0, 8, 4, 10), "end must be at least 8"),
        (lambda: s.linear_batch_size(0, 3, 8, 10, 2), "multiples of multiple_of"),
        (lambda: s.linear_batch_size(-1, 2, 8, 10), "num_samples"),
        (lambda: s.linear_batch_size(math.nan, 2, 8, 10), "num_samples"),
        (lambda: s.linear_batch_size(0, 2, 8, 0), "ramp_samples"),
        (lambda: s.stepwise_batch_size(0, 2, 8, 4, 10), "increment"),
        (lambda: s.milestone_batch_size(0, {5: 4}), "milestone at 0"),
        (lambda: s.milestone_batch_size(0, {0: 0}), "batch size"),
        (lambda: s.milestone_batch_size(0, {-1: 4, 0: 4}), "milestone"),
        (lambda: s.accumulation_steps(12, 8), "multiple of micro_batch_size"),
        (lambda: s.accumulation_steps(0, 8), "batch_size"),
        (lambda: s.RampedBatchSampler(RandomSampler(range(4)), 2), "use ResumableSampler"),
        (lambda: s.RampedBatchSampler(s.ResumableSampler(range(4)), 0), "batch_size"),
        (lambda: s.RampedBatchSampler(s.ResumableSampler(range(4)), 2.0), "batch_size"),
        (
            lambda: s.RampedBatchSampler(s.ResumableSampler(range(4), num_replicas=2, rank=0), 3),
            "num_replicas = 2",
        ),
        (lambda: list(s.RampedBatchSampler(s.ResumableSampler(range(4)), lambda n: 0)), "batch_size"),
        (lambda: list(s.RampedBatchSampler(s.ResumableSampler(range(4)), lambda n: 2.5)), "batch_size"),
        (lambda: s.AccumulationRamp(8, 8), "function of the samples"),
        (lambda: s.AccumulationRamp(lambda n: 12, 8), "multiple of micro_batch_size"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises((ValueError, TypeError), match=named):
        call()


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [0, 3, 12, 14])
def test_a_fixed_size_is_torchs_batch_sampler(size, drop_last):
    ours = s.RampedBatchSampler(s.ResumableSampler(range(size), seed=3), 4, drop_last)
    torchs = BatchSampler(s.ResumableSampler(range(size), seed=3), 4, drop_last)
    assert len(ours) == len(torchs)
    assert [list(ours) for _ in range(3)] == [list(torchs) for _ in range(3)]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("by_step", [True, False])
def test_a_ramp_is_a_plain_loop(drop_last, by_step):
    size = {0: 3, 7: 5, 20: 4, 45: 7}
    ramp = partial(s.milestone_batch_size, sizes=size)
    batches = s.RampedBatchSampler(s.ResumableSampler(range(17), seed=1), ramp, drop_last, by_step)
    order = s.ResumableSampler(range(17), seed=1)
    steps = seen = 0
    for _ in range(6):
        left, expected = list(order), []
        while left:
            n = ramp(steps if by_step else seen)
            if len(left) < n and drop_last:
                break
            batch, left = left[:n], left[n:]
            expected.append(batch)
            steps, seen = steps + 1, seen + len(batch)
        assert list(batches) == expected


def test_ranks_take_equal_shares_of_one_batch():
    ramp = partial(s.linear_batch_size, start=4, end=12, ramp_samples=40, multiple_of=2)
    alone = s.RampedBatchSampler(s.ResumableSampler(range(50)), ramp)
    shares = [
        s.RampedBatchSampler(s.ResumableSampler(range(50), num_replicas=2, rank=r), ramp) for r in (0, 1)
    ]
    for _ in range(2):
        for whole, a, b in zip(alone, *shares, strict=True):
            assert sorted(whole) == sorted(a + b) and len(a) == len(b)


def test_a_size_that_the_ranks_cannot_share_is_named_at_the_batch():
    order = s.ResumableSampler(range(50), num_replicas=2, rank=0)
    batches = iter(s.RampedBatchSampler(order, lambda n: 2 if n == 0 else 3))
    next(batches)
    with pytest.raises(ValueError, match="multiple of num_replicas = 2, got 3"):
        next(batches)


# ------------------------------------------------------------------ accumulation
def build_ramp():
    return s.AccumulationRamp(
        partial(s.linear_batch_size, start=4, end=16, ramp_samples=60, multiple_of=4), 2, 2
    )


def test_accumulation_is_the_ramp_in_micro_batches():
    ramp, seen, sizes = build_ramp(), 0, []
    for _ in range(40):
        expected = s.linear_batch_size(seen, 4, 16, 60, 4) // 4
        assert ramp.num_micro_batches == expected
        answers = [ramp.micro_step() for _ in range(expected)]
        assert answers == [False] * (expected - 1) + [True]
        seen += 4 * expected
        assert ramp.num_samples == seen
        sizes.append(expected)
    assert sizes[0] == 1 and sizes[-1] == 4 and ramp.num_steps == 40


@pytest.mark.parametrize("stop", range(12))
def test_accumulation_resumes(stop):
    whole = [r.micro_step() for r in [build_ramp()] for _ in range(30)]
    first, second = build_ramp(), build_ramp()
    before = [first.micro_step() for _ in range(stop)]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.num_micro_batches == first.num_micro_batches
    assert before + [second.micro_step() for _ in range(30 - stop)] == whole


@pytest.mark.parametrize("change", [{"micro": 9}, {"num_samples": -1}, {"num_steps": 0.5}, {"x": 1}])
def test_bad_accumulation_state_changes_nothing(change):
    ramp = build_ramp()
    ramp.micro_step()
    before = ramp.state_dict()
    with pytest.raises((ValueError, TypeError)):
        ramp.load_state_dict({**before, **change})
    assert ramp.state_dict() == before
