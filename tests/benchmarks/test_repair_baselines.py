"""Each strategy does to the steps of a training what it says, and nothing is left behind."""

import math

import pytest
import torch
from torch import nn

from benchmarks.repair_baselines import STRATEGIES, BackOff, Strategy, baseline_row, following, kind
from benchmarks.repair_zoo import same_losses
from benchmarks.zoo.training import Training, plain_loop
from benchmarks.zoo_runs import Draw, truth_row

STEEP = Draw("sgd_lr_large", 10, False)


def training(optimizer=torch.optim.SGD, lr=0.1, factors=(1.0,) * 4, **settings):
    """One weight of 1 and the loss 2 w f, so that the gradient of step i is 2 f_i."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return Training(
        model,
        optimizer(model.parameters(), lr=lr, **settings),
        loss=lambda m, f: 2 * f * m.weight.sum(),
        batch=lambda i: factors[i],
        steps=len(factors),
        score=lambda: 0.0,
        target=1.0,
    )


def weights(t, name=None, strategy=None):
    """The weight after each step."""
    with following(strategy or STRATEGIES[name](t)):
        return [t.model.weight.item() for _ in t.train()]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_optimizer_is_free_again_afterwards(name):
    t = training()
    weights(t, name)
    before = t.model.weight.item()
    t.model.weight.grad = torch.full((1, 1), 100.0)
    t.optimizer.step()
    assert t.model.weight.item() == pytest.approx(before - 10.0)


def test_no_strategy_changes_no_bit():
    training = STEEP.build()
    with following(Strategy(training)):
        losses = list(training.train())
    plain = list(STEEP.build().train())
    assert len(losses) == len(plain) and same_losses(losses, plain)


def test_skip_leaves_out_what_is_not_finite_and_only_that():
    found = weights(training(factors=(1.0, math.inf, 1.0)), "skip")
    assert found == pytest.approx([0.8, 0.8, 0.6])


def test_skip_leaves_out_a_step_whose_loss_alone_is_not_finite():
    t = training()
    loss = t.loss
    t.loss = lambda m, f: loss(m, f) + math.nan
    assert weights(t, "clip 1.0 + skip") == [1.0] * 4


def test_clip_bounds_the_step_and_does_not_skip():
    assert weights(training(factors=(1.0, 0.25)), "clip 1.0") == pytest.approx([0.9, 0.85])
    assert math.isnan(weights(training(factors=(1.0, math.nan)), "clip 1.0")[-1])


@pytest.mark.parametrize(
    "name, first, last",
    [("ZClip", 2.0, 2.0), ("ZClip, capped at 1.0", 1.0, 1.0), ("AutoClip", 2.0, 2.0)],
)
def test_a_spike_is_cut_to_what_was_seen_before(name, first, last):
    """With a little noise in the norms, which are about 2; after 30 steps one that is a thousand times as large."""
    t = training(lr=1.0, factors=(*(1 + 1e-3 * (i % 3) for i in range(30)), 1e3))
    found = [1.0, *weights(t, name)]
    steps = [a - b for a, b in zip(found, found[1:], strict=False)]
    assert steps[0] == pytest.approx(first) and steps[-1] == pytest.approx(last, rel=0.01)


def test_agc_leaves_the_last_linear_layer_alone():
    torch.manual_seed(0)
    t = training()
    t.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer in t.model:
        nn.init.ones_(layer.weight)
    t.optimizer = torch.optim.SGD(t.model.parameters(), lr=0.1)
    t.loss = lambda m, f: m(torch.full((1, 1), f)).sum()
    with following(STRATEGIES["AGC"](t)):
        next(t.train())
    assert [layer.weight.item() for layer in t.model] == pytest.approx([1 - 0.1 * 0.01, 0.9])


@pytest.mark.parametrize("name", ["StableAdamW", "SPAM"])
def test_another_optimizer_steps_at_the_users_rate_if_it_is_adam(name):
    found = weights(training(torch.optim.Adam, lr=0.1), name)
    assert found == pytest.approx([0.9, 0.8, 0.7, 0.6], abs=1e-4)
    decayed = weights(training(torch.optim.AdamW, lr=0.1, weight_decay=1.0), name)
    assert decayed[0] == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["StableAdamW", "SPAM"])
def test_another_optimizer_steps_at_its_own_rate_under_the_users_schedule(name):
    t = training(torch.optim.SGD, lr=5.0)
    t.scheduler = torch.optim.lr_scheduler.LambdaLR(t.optimizer, lambda i: 0.5**i)
    found = [1.0, *weights(t, name)]
    steps = [a - b for a, b in zip(found, found[1:], strict=False)]
    assert steps == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4], rel=0.02)  # and a hundredth of it is decay


def test_back_off_takes_a_tenth_of_the_rate_from_the_last_good_weights():
    found = weights(training(factors=(1.0, 1.0, math.inf, 1.0)), "lr / 10 on explosion")
    assert found == pytest.approx([0.8, 0.6, 1.0, 0.98])


def test_back_off_gives_momentum_back_too_and_stops_after_six():
    t = training(factors=(1.0, *[math.inf] * 7), momentum=0.9)
    strategy = BackOff(t)
    found = weights(t, strategy=strategy)
    assert found[1:7] == [1.0] * 6 and not math.isfinite(found[7])
    assert strategy.times == 6
    again = training(factors=(1.0, math.inf, 1.0), momentum=0.9)
    assert weights(again, "lr / 10 on explosion")[-1] == pytest.approx(1 - 0.1 * 0.1 * 2.0)
    assert again.optimizer.param_groups[0]["lr"] == 0.1


def test_a_row_says_how_it_ended():
    row = baseline_row("lr / 10 on explosion", STEEP)
    assert row["trained"] and row["outcome"]["kind"] == "trained" and row["error"] == ""
    assert not truth_row(STEEP)["outcome"]["trained"]


def test_a_training_that_raises_has_not_trained(monkeypatch):
    def loop(t):
        yield from plain_loop(t)
        raise RuntimeError("svd did not converge")

    def build(draw):
        t = training()
        t.loop = loop
        return t

    monkeypatch.setattr(Draw, "build", build)
    row = baseline_row("skip", STEEP)
    assert not row["trained"] and row["outcome"] is None and "svd" in row["error"]


def test_each_strategy_has_a_file_of_its_own():
    assert len({kind(name) for name in STRATEGIES}) == len(STRATEGIES)
