"""Weights are clamped after each step, of one optimizer or of all."""

import pytest
import torch
from torch import nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under


def train(by_hand=None):
    """A critic without bound and a generator; by hand the script clamps these after the step of their own."""
    torch.manual_seed(0)
    critic, generator = nn.Linear(4, 1), nn.Linear(2, 4)
    optimizers = {m: torch.optim.SGD(m.parameters(), lr=0.5) for m in (generator, critic)}
    for _ in range(6):
        for model, sign in ((critic, 1), (generator, -1)):
            optimizers[model].zero_grad()
            (
                sign * (critic(generator(torch.randn(8, 2))).mean() - critic(torch.randn(8, 4)).mean())
            ).backward()
            optimizers[model].step()
            if by_hand and model is {"critic": critic, "generator": generator}.get(by_hand, model):
                with torch.no_grad():
                    for p in model.parameters():
                        p.clamp_(-0.25, 0.25)
    return {**critic.state_dict(), **{f"g.{k}": v for k, v in generator.state_dict().items()}}


@pytest.mark.parametrize(
    ("value", "by_hand"),
    [
        ({"max": 0.25}, "all"),
        ({"max": 0.25, "optimizer": 1}, "critic"),
        ({"max": 0.25, "optimizer": 0}, "generator"),
    ],
)
def test_equals_the_script_that_clamps(value, by_hand):
    with under({"weight_clip": value}):
        clamped = train()
    assert differences(clamped, train(by_hand)) == []
    assert differences(clamped, train()) != []


def test_weights_within_the_bound_are_left():
    with under({"weight_clip": {"max": 1e6}}):
        clamped = train()
    assert differences(clamped, train()) == []


@pytest.mark.parametrize(
    "value", [0.1, {}, {"max": 0}, {"max": 0.1, "optimizer": "critic"}, {"max": 0.1, "optimizer": -1}]
)
def test_a_value_that_means_nothing_is_refused(value):
    with pytest.raises(NotApplicable):
        Change({"weight_clip": value})
