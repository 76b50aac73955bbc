"""Momentum and weight decay are lowered for the step alone, also while a scheduler cycles them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under


def train(make, schedule=None):
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    optimizer = make(model.parameters())
    scheduler = schedule(optimizer) if schedule else None
    seen = []
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 2)).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        group = optimizer.param_groups[0]
        seen.append(group.get("momentum", group.get("betas")))
    return {"weight": model.weight.detach().clone()}, seen


def sgd(momentum, decay=0.0):
    return lambda p: torch.optim.SGD(p, lr=0.05, momentum=momentum, weight_decay=decay)


def adam(beta1):
    return lambda p: torch.optim.Adam(p, lr=0.01, betas=(beta1, 0.99))


def one_cycle(low, high):
    return lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=21, base_momentum=low, max_momentum=high)


@pytest.mark.parametrize(
    ("plan", "script", "edited", "schedule", "edited_schedule"),
    [
        ({"momentum": 0.5}, sgd(0.9), sgd(0.5), None, None),
        ({"momentum": 0.5}, adam(0.9), adam(0.5), None, None),
        ({"momentum": 0.5}, sgd(0.9), sgd(0.5), one_cycle(0.85, 0.95), one_cycle(0.5, 0.5)),
        ({"momentum": 0.5}, adam(0.9), adam(0.5), one_cycle(0.85, 0.95), one_cycle(0.5, 0.5)),
        ({"weight_decay": 0.0}, sgd(0.9, 0.3), sgd(0.9), None, None),
        ({"weight_decay": 0.1}, sgd(0.9, 0.3), sgd(0.9, 0.1), None, None),
    ],
)
def test_equals_the_script_with_the_other_number(plan, script, edited, schedule, edited_schedule):
    with under(plan):
        changed, seen = train(script, schedule)
    plain, unchanged = train(script, schedule)
    assert differences(changed, train(edited, edited_schedule)[0]) == []
    assert differences(changed, plain) != []
    assert seen == unchanged, "the scheduler and the script see their own"


@pytest.mark.parametrize("make", [sgd(0.3, 0.01), adam(0.3)])
def test_what_is_lower_already_is_left(make):
    with under({"momentum": 0.5, "weight_decay": 0.1}):
        changed, _ = train(make)
    assert differences(changed, train(make)[0]) == []


@pytest.mark.parametrize(
    "plan", [{"momentum": 1.0}, {"momentum": -0.1}, {"momentum": None}, {"weight_decay": -1.0}]
)
def test_a_value_that_means_nothing_is_refused(plan):
    with pytest.raises(NotApplicable):
        Change(plan)
