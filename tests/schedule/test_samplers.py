"""Conformance of every sampler: resumed at any place it gives what the uninterrupted one gave."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.utils.data import DistributedSampler

from steadygrad import schedule as s
from tests.schedule.table import DATA, INDEX_SAMPLERS, SAMPLERS, Sampling, shuffled, tagged

over = pytest.mark.parametrize("case", SAMPLERS, ids=lambda c: c.name)
EPOCHS = 4


def epochs(sampler, n=EPOCHS) -> list[list]:
    return [[tagged(item) for item in sampler] for _ in range(n)]


@over
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("ahead", [0, 3])
def test_resume_at_every_place_equals_uninterrupted(case: Sampling, rank, ahead):
    """``ahead``: what workers have drawn beyond what was trained on."""
    whole = epochs(case.build(2, rank))
    for stop_epoch in range(EPOCHS):
        for consumed in range(len(whole[stop_epoch]) + 1):
            first = case.build(2, rank)
            epochs(first, stop_epoch)
            running = iter(first)
            for _ in range(max(1, consumed + ahead)):  # it begins with its first item
                next(running, None)
            state = first.state_dict(consumed)
            second = case.build(2, rank)
            second.load_state_dict(state)
            rest = epochs(second, EPOCHS - stop_epoch)
            assert rest == [whole[stop_epoch][consumed:], *whole[stop_epoch + 1 :]]


@over
def test_resumed_twice(case: Sampling):
    """A resumed iteration is stopped again before its epoch ends: counts go on from there."""
    whole = epochs(case.build(1, 0), 2)
    first = case.build(1, 0)
    next(iter(first))
    second = case.build(1, 0)
    second.load_state_dict(first.state_dict(1))
    running = iter(second)
    next(running), next(running)
    third = case.build(1, 0)
    third.load_state_dict(second.state_dict(2))
    assert epochs(third, 2) == [whole[0][3:], whole[1]]


@over
def test_state_survives_saving_and_is_a_copy(case: Sampling):
    sampler = case.build(1, 0)
    next(iter(sampler))
    state = sampler.state_dict(1)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state == copy.deepcopy(state)
    again = case.build(1, 0)
    again.load_state_dict(state)
    assert again.state_dict(0) == state  # round trip
    assert sampler.state_dict(2) != state
    assert sampler.state_dict(1) == state  # asked in any order


@over
def test_len_is_that_of_the_epoch(case: Sampling):
    sampler = case.build(2, 1)
    for _ in range(EPOCHS):
        running = iter(sampler)
        first = [next(running)]
        assert len(first + list(running)) == len(sampler)


@over
def test_len_of_a_resumed_epoch_is_that_of_the_whole(case: Sampling):
    sampler = case.build(1, 0)
    whole = len(sampler)
    next(iter(sampler))
    again = case.build(1, 0)
    again.load_state_dict(sampler.state_dict(2))
    assert len(again) == whole and len(list(again)) == whole - 2 and len(again) == whole


@over
def test_neither_uses_nor_moves_the_global_generator(case: Sampling):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = epochs(case.build(1, 0), 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert epochs(case.build(1, 0), 2) == a


@over
def test_deepcopy_and_pickle_go_on_alike(case: Sampling):
    sampler = case.build(1, 0)
    list(sampler)
    twin = copy.deepcopy(sampler)
    second = epochs(sampler, 1)
    assert epochs(twin, 1) == second
    if case.name != "lengths":  # its lambda cannot be pickled
        assert epochs(pickle.loads(pickle.dumps(case.build(1, 0))), 2)[1] == second[0]


@over
def test_set_epoch(case: Sampling):
    sampler = case.build(1, 0)
    first, second = epochs(sampler, 2)
    sampler.set_epoch(0)
    if "ramp" not in case.name and case.name != "lengths":  # these count steps on
        assert epochs(sampler, 2) == [first, second]
    resumed = case.build(1, 0)
    resumed.load_state_dict({**case.build(1, 0).state_dict(2)})
    resumed.set_epoch(0)  # as loops for DistributedSampler do: the place is not lost
    assert epochs(resumed, 1) == [first[2:]]
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(-1)


@over
def test_bad_states_change_nothing(case: Sampling):
    sampler, twin = case.build(2, 0), case.build(2, 0)
    state = sampler.state_dict(0)
    other = case.build(1, 0).state_dict(0)
    for bad in ({}, {**state, "x": 1}, {**state, "place": -1}, {**state, "epoch": None}, other):
        with pytest.raises((ValueError, TypeError)):
            sampler.load_state_dict(bad)
    with pytest.raises(ValueError, match="num_consumed must be at most"):
        sampler.state_dict(10**4)
    with pytest.raises(TypeError):
        sampler.state_dict()  # how much was trained on only the loop knows
    assert epochs(sampler, 2) == epochs(twin, 2)


@pytest.mark.parametrize("case", INDEX_SAMPLERS, ids=lambda c: c.name)
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_ranks_draw_equally_many_and_together_one_stream(case: Sampling, num_replicas):
    together = [epochs(case.build(num_replicas, r), 2) for r in range(num_replicas)]
    for epoch in range(2):
        lengths = {len(t[epoch]) for t in together}
        assert len(lengths) == 1
        merged = [i for row in zip(*(t[epoch] for t in together), strict=True) for i in row]
        if case.name != "curriculum":
            alone = epochs(case.build(1, 0), 2)[epoch]
            n = min(len(alone), len(merged))
            assert merged[:n] == alone[:n] and set(merged) <= set(alone)
    if case.name == "curriculum":  # with steps counting on across epochs, of 6 or 12 draws of each rank
        streams = [[i for e in t for i in e] for t in together]
        merged = [i for row in zip(*streams, strict=True) for i in row]
        alone = [i for e in epochs(case.build(1, 0), 3) for i in e]
        assert merged == alone[: len(merged)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [0, 1, 7, 12])
def test_same_indices_as_torchs_distributed_sampler(shuffle, drop_last, size):
    for rank in range(3):
        torchs = DistributedSampler(range(size), 3, rank, shuffle, 11, drop_last)
        ours = s.ResumableSampler(range(size), shuffle, 11, drop_last, 3, rank)
        for epoch in range(3):
            torchs.set_epoch(epoch)
            assert list(ours) == list(torchs)


@over
def test_an_iterator_that_is_never_used_is_no_epoch(case: Sampling):
    """A DataLoader with workers asks for two and uses the second."""
    sampler = case.build(1, 0)
    iter(sampler)
    iter(sampler)
    assert epochs(sampler, 2) == epochs(case.build(1, 0), 2)


def test_every_iteration_is_a_new_epoch_even_after_a_break():
    sampler = shuffled(1, 0)
    first = list(sampler)
    for _ in sampler:
        break
    assert list(sampler) not in (first, []) and sorted(first) == list(range(DATA))


def test_asks_torch_distributed_for_rank_and_replicas():
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", rank=2, world_size=4, store=fake.FakeStore())
    try:
        sampler = s.CurriculumSampler([0.0] * 9, lambda step: 1.0, samples_per_step=4)
        assert (sampler.num_replicas, sampler.rank, len(sampler)) == (4, 2, 3)
        assert list(s.ResumableSampler(range(8), shuffle=False)) == [2, 6]
    finally:
        torch.distributed.destroy_process_group()
    assert s.ResumableSampler(range(8)).num_replicas == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_replicas": 0}, "num_replicas"),
        ({"num_replicas": 2, "rank": 2}, "rank must be below"),
        ({"rank": -1}, "rank"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_arguments(arguments, named):
    for build in (
        lambda **k: s.ResumableSampler(range(4), **k),
        lambda **k: s.CurriculumSampler([1.0, 2.0], lambda step: 1.0, 4, **k),
        lambda **k: s.EpochCurriculumSampler([1.0, 2.0], lambda step: 1.0, **k),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            build(**arguments)
