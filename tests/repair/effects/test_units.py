"""Dead units come back; what is alive is left alone, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, upon

pytestmark = pytest.mark.usefixtures("apart")


def train(plan, kill=(), steps=5, conv=False):
    torch.manual_seed(0)
    if conv:
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 1))
        x = torch.randn(32, 1, 6, 6)
    else:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        x = torch.randn(32, 4)
    for unit in kill:
        model[0].bias.data[unit] = -50.0
    with upon(plan):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return model, x, leavings(model, optimizer)


@pytest.mark.parametrize("conv", [False, True])
def test_a_dead_unit_is_centred_on_the_batch(conv):
    model, x, _ = train({"dead_unit_reset": {"modules": ["0"]}}, kill=[2, 5], conv=conv)
    active = (model[0](x).movedim(1, 0).flatten(1) > 0).float().mean(1)
    assert ((active > 0.1) & (active < 0.95)).all()


@pytest.mark.parametrize(
    "plan", [{"dead_unit_reset": {"modules": ["0"]}}, {"bias_clamp": {"modules": ["0"], "limit": 10}}]
)
def test_units_that_are_alive_change_no_bit(plan):
    assert not differences(train(plan)[2], train({})[2])


def test_units_are_watched_for_so_many_steps_only():
    model, _, _ = train({"dead_unit_reset": {"modules": ["0"], "steps": 0}}, kill=[2])
    assert model[0].bias[2] < -49


def test_biases_stay_within_their_limit():
    model, _, _ = train({"bias_clamp": {"modules": ["0"], "limit": 0.5}}, kill=[2])
    assert -0.5 <= model[0].bias[2] < -0.4


def test_without_a_bias_there_is_nothing_to_do():
    model = nn.Sequential(nn.Linear(4, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with upon({"dead_unit_reset": {"modules": ["0"]}}), pytest.raises(NotApplicable, match="bias"):
        model(torch.randn(2, 4))
    assert optimizer.param_groups and copy.deepcopy(model)
