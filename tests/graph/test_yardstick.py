"""The yardstick over many batches, against the same targets in one batch."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadygrad.graph.loss import SeenTerm, read_loss
from steadygrad.graph.targets import MAX_VALUES, Targets, capacity, trivial
from steadygrad.graph.walk import Graph
from steadygrad.graph.yardstick import MAX_KEYS, Yardstick, expected_start, progress
from steadygrad.records import LossTerm


def read(loss: Tensor) -> tuple[SeenTerm, ...]:
    return read_loss(Graph([loss]), [loss])


def batches(number: int = 6, rows: int = 16, columns: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shift = torch.arange(number).view(-1, 1, 1) * 0.7  # no batch is like the others
    targets = (
        torch.randn(number, rows, columns, generator=draw) * torch.tensor([1.0, 5.0, 0.1])[:columns] + shift
    )
    return torch.randn(number, rows, columns, generator=draw).requires_grad_() * 1, targets


LOSSES = {
    "mse": F.mse_loss,
    "mse sum": lambda p, t: F.mse_loss(p, t, reduction="sum"),
    "l1": lambda p, t: (
        F.smooth_l1_loss(p, t, beta=0.0) if p.ndim == 0 else (F.huber_loss(p, t, delta=1e-6) * 1e6)
    ),
    "smooth_l1": F.smooth_l1_loss,
    "huber": lambda p, t: F.huber_loss(p, t, delta=0.5),
    "bce": lambda p, t: F.binary_cross_entropy(p.sigmoid(), t.sigmoid()),
    "bce_logits": lambda p, t: F.binary_cross_entropy_with_logits(
        p, t.sigmoid(), pos_weight=torch.tensor(3.0)
    ),
    "classes": lambda p, t: F.cross_entropy(p, t.argmax(1)),
    "soft": lambda p, t: F.cross_entropy(p, t.softmax(1)),
    "kl_div": lambda p, t: F.kl_div(p.log_softmax(1), t.softmax(1), reduction="batchmean"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_many_batches_are_one_large_batch(name: str) -> None:
    p, t = batches()
    yardstick = Yardstick()
    told: list[LossTerm] = []
    alone = []
    for one, target in zip(p, t, strict=True):
        seen = read(LOSSES[name](one, target))
        alone.append(seen[0].term.trivial)
        told += yardstick.take(seen)
    (whole,) = read(LOSSES[name](p.flatten(0, 1), t.flatten(0, 1)))
    assert told[0].trivial == pytest.approx(alone[0], rel=1e-6)
    assert told[-1].trivial == pytest.approx(whole.term.trivial, rel=1e-4)
    assert abs(told[-1].trivial - alone[-1]) > 0.01 * whole.term.trivial  # one batch would have told less
    assert told[-1].value != told[0].value


def test_batches_of_one_get_a_yardstick() -> None:
    p, t = batches(40, 1, 3)
    yardstick = Yardstick()
    for one, target in zip(p, t, strict=True):
        (seen,) = read(F.mse_loss(one, target))
        assert seen.term.trivial == 0
        (term,) = yardstick.take([seen])
    assert term.trivial == pytest.approx(float(t.flatten(0, 1).var(0, unbiased=False).mean()), rel=1e-5)


def test_ignored_and_weighted_classes_count_as_they_do_in_the_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    p, t = (
        torch.randn(5, 20, 4, generator=draw).requires_grad_() * 1,
        torch.randint(0, 4, (5, 20), generator=draw),
    )
    t[:, ::3] = -100
    yardstick = Yardstick()
    for one, target in zip(p, t, strict=True):
        (term,) = yardstick.take(read(F.cross_entropy(one, target)))
    prior = torch.bincount(t[t >= 0], minlength=4) / (t >= 0).sum()
    assert term.trivial == pytest.approx(float(-(prior * prior.log()).sum()), rel=1e-5)


def test_terms_of_one_kind_are_told_apart_by_order_and_by_columns() -> None:
    p, t = batches()
    yardstick = Yardstick()
    for i in range(6):
        loss = (
            F.mse_loss(p[i], t[i])
            + 0.5 * F.mse_loss(p[i] * 1, 100 * t[i])
            + F.mse_loss(p[i, :, 0], t[i, :, 0])
        )
        terms = yardstick.take(read(loss))
    variance = t.flatten(0, 1).var(0, unbiased=False)
    expected = {float(variance.mean()), 1e4 * float(variance.mean()), float(variance[0])}
    assert sorted(term.trivial for term in terms) == pytest.approx(sorted(expected), rel=1e-4)


def test_lengths_may_change() -> None:
    yardstick = Yardstick()
    draw = torch.Generator().manual_seed(0)
    kept = []
    for length in (3, 7, 5):
        t = torch.randint(0, 4, (2, length), generator=draw)
        kept.append(t.view(-1))
        (term,) = yardstick.take(read(F.cross_entropy(torch.zeros(2, 4, length, requires_grad=True) * 1, t)))
    prior = torch.bincount(torch.cat(kept), minlength=4) / 30
    assert term.trivial == pytest.approx(float(-torch.special.xlogy(prior, prior).sum()), rel=1e-5)


def test_the_sample_for_medians_is_bounded_even_and_draws_nothing() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    yardstick = Yardstick()
    values = torch.sin(torch.arange(60 * 509) * 0.37) ** 3 + torch.arange(60 * 509) / 9000
    for chunk in values.view(60, 509):
        (term,) = yardstick.take(
            read(F.huber_loss(torch.zeros(509, requires_grad=True) * 1, chunk, delta=0.2))
        )
    (kept,) = yardstick._seen.values()
    assert kept.seen == len(values)
    assert capacity(1) / 2 <= len(kept.values) <= capacity(1) == MAX_VALUES
    assert np.array_equal(kept.values[:, 0], values[:: kept.every].numpy().astype(float))
    (whole,) = read(F.huber_loss(torch.zeros(len(values), requires_grad=True) * 1, values, delta=0.2))
    assert term.trivial == pytest.approx(whole.term.trivial, rel=0.02)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # type: ignore[index]


def test_batches_larger_than_the_sample_take_their_turn() -> None:
    yardstick = Yardstick()
    for i in range(5):
        values = torch.arange(5000.0) + 5000 * i
        yardstick.take(read(F.huber_loss(torch.zeros(5000, requires_grad=True) * 1, values)))
    (kept,) = yardstick._seen.values()
    assert 1000 < len(kept.values) <= MAX_VALUES
    per_batch, _ = np.histogram(kept.values, bins=5, range=(0, 25000))
    assert per_batch.min() > 0.8 * per_batch.max()


@pytest.mark.parametrize("name", LOSSES)
def test_state_goes_through_json(name: str) -> None:
    p, t = batches()
    one, other = Yardstick(), Yardstick()
    for i in range(3):
        one.take(read(LOSSES[name](p[i], t[i])))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for i in range(3, 6):
        seen = read(LOSSES[name](p[i], t[i]))
        assert one.take(seen) == other.take(seen)
    assert json.dumps(one.state_dict()) == json.dumps(other.state_dict())


def test_the_number_of_terms_is_bounded() -> None:
    yardstick = Yardstick()
    for columns in range(2, MAX_KEYS + 12):
        loss = F.mse_loss(torch.zeros(4, columns, requires_grad=True) * 1, torch.randn(4, columns))
        (seen,) = read(loss)
        (term,) = yardstick.take([seen])
        assert term.trivial == seen.term.trivial
    assert len(yardstick._seen) == MAX_KEYS


def test_terms_without_targets_pass_through() -> None:
    p, t = batches()
    seen = read(((p[0] * 1 - t[0]) ** 2).mean())
    assert seen[0].targets is None
    assert Yardstick().take(seen) == (seen[0].term,)


def term(**more: object) -> LossTerm:
    known = {"kind": "mse", "value": 2.0, "trivial": 4.0, "weight": 1.0, "reduction": "mean", "elements": 8}
    rest = {"prediction_rms": 1.0, "target_rms": 3.0, "target_mean": 0.0, "target_std": 1.0}
    return LossTerm(**{**known, **rest, **more})  # type: ignore[arg-type]


def test_progress() -> None:
    assert progress(term()) == 0.5
    assert progress(term(value=5.0)) == -0.25
    for trivial_value in (0.0, math.nan, -1.0):
        assert math.isnan(progress(term(trivial=trivial_value)))


def test_expected_start() -> None:
    assert expected_start(term()) == 9.0
    assert expected_start(term(kind="l1")) == 4.0
    assert expected_start(term(kind="cross_entropy", classes=10)) == pytest.approx(math.log(10))
    assert (
        expected_start(term(kind="bce"))
        == expected_start(term(kind="bce_logits"))
        == pytest.approx(math.log(2))
    )
    assert math.isnan(expected_start(term(kind="ctc", trivial=math.nan)))


def test_nothing_counted_has_no_best_constant() -> None:
    for kind in ("mse", "bce", "l1", "cross_entropy", "kl_div", "ctc"):
        empty = Targets(
            kind, (3,), weight=np.zeros(3), mean=np.zeros(3), squares=np.zeros(3), counts=np.zeros(3)
        )
        assert math.isnan(trivial(empty))
        assert math.isnan(empty.std) and math.isnan(empty.average) and math.isnan(empty.mean_square)
