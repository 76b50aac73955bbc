"""A few of the healthy families train, and some look as ill as they are meant to. The others run in the benchmark."""

import math
from collections import Counter

import pytest
import torch

from benchmarks.zoo import families, outcome

HEALTHY = {f.name: f for f in families() if f.healthy}


@pytest.mark.parametrize(
    "name", ["frozen_backbone", "large_targets", "raw_columns_batch_norm", "batches_without_labels"]
)
def test_trains(name):
    result = outcome(HEALTHY[name].build(0))
    assert result.trained, result


def test_batches_without_labels_have_a_nan_loss_and_no_gradient():
    training = HEALTHY["batches_without_labels"].build(0)
    for i in range(100):
        loss = training.loss(training.model, training.batch(i))
        if math.isnan(float(loss.detach())):
            break
    else:
        pytest.fail("every batch had a label")
    loss.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in training.model.parameters())


def test_catapult_is_thrown_up_and_comes_back():
    training = HEALTHY["catapult"].build(0)
    losses = [loss for _, loss in zip(range(150), training.train(), strict=False)]
    assert max(losses) > 5 * losses[0] > 5 * losses[-1]


def test_scaler_skips_its_first_steps():
    training = HEALTHY["loss_scale_search"].build(0)
    before = [p.detach().clone() for p in training.model.parameters()]
    losses = training.train()
    next(losses)
    assert all((a == b).all() for a, b in zip(before, training.model.parameters(), strict=True))
    for _ in range(20):
        next(losses)
    assert any((a != b).any() for a, b in zip(before, training.model.parameters(), strict=True))


def test_about_a_third_is_blind():
    blind = Counter(f.blind for f in HEALTHY.values())
    assert len(HEALTHY) >= 26 and 0.25 <= blind[True] / len(HEALTHY) <= 0.4


@pytest.mark.parametrize("name", HEALTHY)
def test_a_seed_gives_the_same_training(name):
    one, two = (HEALTHY[name].build(3) for _ in range(2))
    assert one.facts == two.facts and one.at == two.at
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("name", HEALTHY)
def test_a_step_has_its_batch(name):
    training = HEALTHY[name].build(2)
    state = torch.get_rng_state()
    first = training.batch(5)
    training.batch(6)
    again = training.batch(5)
    assert (torch.get_rng_state() == state).all()
    for a, b in zip(first, again, strict=True):
        assert (a == b).all() if isinstance(a, torch.Tensor) else a == b
