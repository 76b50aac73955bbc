"""A plan is in force for the training that is built under it, while it is judged as well, and for no other."""

import math

import pytest
import torch

from benchmarks.repair_baselines import baseline_row
from benchmarks.repair_plans import ended, outcome_json, record, under
from benchmarks.repair_zoo import again, same_losses
from benchmarks.zoo_runs import Draw, truth_row
from steadygrad.repair.effects.effect import NotApplicable

STEEP = Draw("sgd_lr_large", 10, False)


def test_no_plan_is_the_plain_run():
    plain = ended(STEEP)
    assert outcome_json(plain.outcome) == truth_row(STEEP)["outcome"] and not plain.outcome.trained
    assert len(plain.losses) == plain.outcome.steps < plain.steps
    assert same_losses(ended(STEEP, {}).losses, plain.losses)


def test_a_plan_that_never_decides_changes_no_bit():
    healthy = Draw("cnn_batch_norm", 10, False)
    assert same_losses(ended(healthy, {"clip_norm": 1e30}).losses, ended(healthy).losses)


def test_a_smaller_rate_trains_what_the_plain_run_does_not():
    cured = ended(STEEP, {"lr_factor": 0.01})
    assert cured.outcome.trained and cured.outcome.steps == cured.steps


def test_the_same_as_the_strategy_that_does_the_same():
    assert (
        outcome_json(ended(STEEP, {"clip_norm": 1.0}).outcome) == baseline_row("clip 1.0", STEEP)["outcome"]
    )


def test_another_optimizer_takes_the_steps_in_place_of_the_users():
    changed = ended(STEEP, {"optimizer": {"name": "AdamW", "lr": 1e-3}})
    assert changed.outcome.trained


def test_a_change_of_the_model_holds_while_it_is_judged():
    """A last layer of almost nothing but its bias, and weights that stand still: chance on ten digits, about ln 10."""
    earlier = STEEP._replace(seed=11).build()  # is no part of it
    weight = earlier.model.last.weight.detach().clone()
    changed = ended(STEEP, {"output_scale": {"modules": ["last"], "factor": 0.0}, "lr_factor": 1e-9})
    assert changed.outcome.score == pytest.approx(math.log(10), rel=0.02)
    assert torch.equal(earlier.model.last.weight, weight)


def test_other_optimizers_are_left_alone_in_the_block_and_ours_behind_it():
    def step(optimizer, weight):
        before = weight.item()
        weight.grad = torch.ones(())
        optimizer.step()
        return before - weight.item()

    old = torch.nn.Parameter(torch.zeros(()))
    earlier = torch.optim.SGD([old], lr=1.0)
    with under({"lr_factor": 0.1}):
        new = torch.nn.Parameter(torch.zeros(()))
        ours = torch.optim.SGD([new], lr=1.0)
        assert step(earlier, old) == 1.0
        assert step(ours, new) == pytest.approx(0.1)
    assert step(ours, new) == pytest.approx(1.0)


def test_a_plan_that_cannot_be_put_in_force_says_so():
    with pytest.raises(NotApplicable, match="no_such_thing"), under({"no_such_thing": 1}):
        pass


def test_a_plan_that_the_model_has_no_place_for_says_so():
    with pytest.raises(NotApplicable):
        ended(STEEP, {"output_scale": {"modules": ["nowhere"], "factor": 0.0}})


def test_losses_are_written_down_as_they_come():
    training = STEEP.build()
    losses = []
    record(training, losses)
    run = training.train()
    assert [next(run), next(run)] == losses


def test_losses_are_the_same_by_their_bits():
    assert same_losses([1.0, math.nan, 2.0], [1.0, math.nan])
    assert not same_losses([1.0, math.nextafter(2.0, 3.0)], [1.0, 2.0])
    assert not same_losses([], [1.0])


def test_a_repetition_has_the_same_data_and_with_an_offset_other_weights():
    first, same, other = again(STEEP, 0), again(STEEP, 0), again(STEEP, 1)
    own = STEEP.build()
    weights = [t.model.first.weight for t in (own, first, same, other)]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert all(torch.equal(a, b) for a, b in zip(own.batch(3), other.batch(3), strict=True))
    assert own.facts == other.facts
