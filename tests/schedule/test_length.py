"""Sequence-length warm-up: the length of a batch is that of its step, in any worker and however far ahead."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict, namedtuple
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

from steadygrad import schedule as s

T = 24


class Texts(Dataset):
    """Sample i is i, i + 1000, i + 2000, ... with a label without time dimension, in a dict."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        assert type(i) is int  # a dataset sees plain numbers
        return {"ids": torch.arange(T) * 1000 + i, "label": torch.tensor(i)}


class FastTexts(Texts):
    def __getitem__(self, i):
        raise AssertionError("__getitems__ is there")

    def __getitems__(self, indices):
        return [Texts.__getitem__(self, i) for i in indices]


def length_of(step: int) -> int:
    return 3 + 2 * step


def build(data=None, collate=None, batch_size=4, **loader):
    data = Texts() if data is None else data
    batches = s.LengthSampler(s.RampedBatchSampler(s.ResumableSampler(data), batch_size), length_of)
    return DataLoader(
        s.WithLength(data), batch_sampler=batches, collate_fn=collate or s.TruncateCollate(), **loader
    )


def walk(loader, epochs=2):
    return [b for _ in range(epochs) for b in loader]


@pytest.mark.parametrize("data", [Texts, FastTexts])
def test_every_batch_has_the_length_of_its_step(data):
    order = s.ResumableSampler(range(20))
    for step, batch in enumerate(walk(build(data()))):
        if step % 5 == 0:
            left = list(order)
        expected, left = left[:4], left[4:]
        assert batch["label"].tolist() == expected
        length = min(T, length_of(step))
        assert torch.equal(batch["ids"], torch.tensor(expected)[:, None] + torch.arange(length) * 1000)


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_that_prefetch_cut_to_the_same_lengths(prefetch, persistent):
    alone = walk(build())
    many = walk(build(num_workers=2, prefetch_factor=prefetch, persistent_workers=persistent))
    assert [b["ids"].shape[1] for b in alone[:4]] == [3, 5, 7, 9]
    for a, b in zip(alone, many, strict=True):
        assert torch.equal(a["ids"], b["ids"]) and torch.equal(a["label"], b["label"])


def test_one_pair_of_workers_cuts_to_the_same_lengths():
    many = walk(build(num_workers=2, prefetch_factor=3), 1)
    for a, b in zip(walk(build(), 1), many, strict=True):
        assert torch.equal(a["ids"], b["ids"])


def test_a_cut_batch_does_not_carry_the_rest_along():
    batch = next(iter(build()))["ids"]
    assert batch.untyped_storage().nbytes() == batch.nbytes


def test_an_index_keeps_its_length_on_the_way_to_a_worker():
    batches = s.LengthSampler(s.RampedBatchSampler(s.ResumableSampler(range(4), shuffle=False), 2), length_of)
    first = pickle.loads(pickle.dumps(next(iter(batches))))
    assert first == [0, 1] and [i.length for i in first] == [3, 3]
    assert TensorDataset(torch.arange(4))[first[1]][0] == 1  # to others it is a number


def test_lengths_over_a_ramp_of_batch_sizes_and_a_curriculum():
    order = s.CurriculumSampler(range(20), lambda step: 0.25, samples_per_step=4)
    sizes = partial(s.milestone_batch_size, sizes={0: 2, 4: 4})
    batches = s.LengthSampler(s.RampedBatchSampler(order, sizes), length_of)
    shapes = [
        tuple(b["ids"].shape)
        for b in DataLoader(s.WithLength(Texts()), batch_sampler=batches, collate_fn=s.TruncateCollate())
    ]
    assert shapes[:4] == [(2, 3), (2, 5), (4, 7), (4, 9)]


def test_fold_keeps_the_tokens():
    class Ids(Texts):
        def __getitem__(self, i):
            return Texts.__getitem__(self, i)["ids"]

    for step, (batch, whole) in enumerate(
        zip(
            build(Ids(), s.FoldCollate()), build(Ids(), lambda x: torch.stack([v for v, _ in x])), strict=True
        )
    ):
        length = length_of(step)
        kept = T - T % length
        assert batch.shape == (4 * (T // length), length)
        assert torch.equal(batch.reshape(4, kept), whole[:, :kept])


def test_forgotten_pieces_are_named():
    data = Texts()
    batches = s.LengthSampler(s.RampedBatchSampler(s.ResumableSampler(data), 4), length_of)
    with pytest.raises(TypeError, match="wrap the dataset in WithLength"):
        next(iter(DataLoader(range(20), batch_sampler=batches, collate_fn=s.TruncateCollate())))
    with pytest.raises(TypeError, match="carries no length"):
        next(iter(DataLoader(s.WithLength(data), batch_size=2)))
    with pytest.raises(TypeError, match="carries no length"):
        s.WithLength(data)[0]
    with pytest.raises(TypeError, match="RampedBatchSampler, got ResumableSampler"):
        s.LengthSampler(s.ResumableSampler(data), length_of)
    with pytest.raises(TypeError, match="function of the step"):
        s.LengthSampler(batches.batches, 8)
    for bad in (0, 2.5, math.nan):
        wrong = s.LengthSampler(s.RampedBatchSampler(s.ResumableSampler(data), 4), lambda step, bad=bad: bad)
        with pytest.raises((TypeError, ValueError), match="the length"):
            list(wrong)


def test_samples_of_two_batches_are_refused():
    data = s.WithLength(Texts())
    batches = iter(s.LengthSampler(s.RampedBatchSampler(s.ResumableSampler(Texts()), 2), length_of))
    mixed = [data[next(batches)[0]], data[next(batches)[0]]]
    with pytest.raises(ValueError, match=r"lengths \[3, 5\]"):
        s.TruncateCollate()(mixed)


# ------------------------------------------------------------------ the pure functions
@given(
    low=st.integers(1, 100),
    more=st.integers(0, 2000),
    multiple=st.integers(1, 64),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_sequence_length(low, more, multiple, shares):
    high = low + more
    lengths = [s.sequence_length(c, low, high, multiple) for c in sorted(shares)]
    assert lengths == sorted(lengths) and all(low <= n <= high for n in lengths)
    assert s.sequence_length(1.0, low, high, multiple) == high
    for c, n in zip(sorted(shares), lengths, strict=True):
        assert n % multiple == 0 or n in (low, high)
        assert n > low + (high - low) * c - multiple - 1e-9 * high - 1 or c == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((math.nan, 8, 16), "share"),
        ((1.1, 8, 16), "share"),
        ((0.5, 0, 16), "min_length"),
        ((0.5, 8, 7), "max_length"),
        ((0.5, 8, 16, 0), "multiple_of"),
    ],
)
def test_bad_sequence_length(arguments, named):
    with pytest.raises(ValueError, match=named):
        s.sequence_length(*arguments)


Pair = namedtuple("Pair", ["x", "y"])


def test_truncate_keeps_the_nesting():
    x, flat = torch.randn(2, 9, 3), torch.randn(2)
    batch = {"a": [x, (flat, Pair(x, "text"))], "b": OrderedDict(c=x), "d": None}
    cut = s.truncate(batch, 4)
    assert type(cut["a"]) is list and type(cut["a"][1][1]) is Pair and type(cut["b"]) is OrderedDict
    assert cut["a"][1][0] is flat and cut["a"][1][1].y == "text" and cut["d"] is None
    for t in (cut["a"][0], cut["a"][1][1].x, cut["b"]["c"]):
        assert torch.equal(t, x[:, :4])
    assert batch["b"]["c"].shape == (2, 9, 3)
    assert torch.equal(s.truncate(x, 4), x[:, :4]) and s.truncate(x, 20) is x
    assert torch.equal(s.truncate(x, 2, dim=-1), x[..., :2]) and torch.equal(
        s.truncate(x, 4, (1, 2)), x[:, :4]
    )


def test_a_dict_of_dims_chooses():
    x, mask, onehot = torch.randn(2, 9), torch.randn(2, 1, 9, 9), torch.randn(2, 7)
    cut = s.truncate({"x": x, "mask": mask, "y": onehot}, 4, {"x": 1, "mask": (2, 3)})
    assert cut["x"].shape == (2, 4) and cut["mask"].shape == (2, 1, 4, 4) and cut["y"] is onehot
    a, b = s.truncate((x, onehot), 4, {0: 1})
    assert a.shape == (2, 4) and b is onehot
    folded = s.fold({"x": x, "y": onehot}, 4, {"x": 1})
    assert folded["x"].shape == (4, 4) and folded["y"] is onehot


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_any_dtype_and_values(dtype):
    x = torch.ones(2, 6).to(dtype)
    assert s.truncate(x, 3).dtype == s.fold(x, 3).dtype == dtype
    bad = torch.full((2, 6), math.nan)
    assert s.truncate(bad, 3).isnan().all() and s.fold(bad, 3).shape == (4, 3)


def test_empty_and_short():
    assert s.truncate(torch.zeros(0, 9), 4).shape == (0, 4) and s.truncate(torch.zeros(2, 0), 4).shape == (
        2,
        0,
    )
    short = torch.zeros(2, 3)
    assert s.fold(short, 4) is short and s.fold(torch.zeros(0, 9), 4).shape == (0, 4)
    assert s.truncate({}, 4) == {} and s.fold([], 4) == []
    assert s.TruncateCollate(collate_fn=list)([]) == []


def test_bad_cuts():
    x = torch.zeros(2, 9)
    for f in (s.truncate, s.fold):
        for length in (0, 1.5):
            with pytest.raises((ValueError, TypeError), match="length"):
                f(x, length)
        with pytest.raises(ValueError, match=r"dim names \['z'\]"):
            f({"x": x}, 4, {"z": 1})
        with pytest.raises(TypeError, match="must have entries"):
            f(x, 4, {"x": 1})
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        s.fold((x, torch.zeros(2)), 4)
    with pytest.raises(ValueError, match="dim 2"):
        s.fold({"x": x}, 4, {"x": 2})


def test_collates_pickle_and_show_themselves():
    collate = pickle.loads(pickle.dumps(s.TruncateCollate({"ids": 1})))
    assert (
        repr(collate) == "TruncateCollate(dim={'ids': 1})"
        and repr(s.FoldCollate()) == "FoldCollate(dim=None)"
    )
