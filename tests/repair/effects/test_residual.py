"""A gate on a branch: nothing changes at the switch, the optimizer takes it, and it goes without a trace."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, trains, upon

pytestmark = pytest.mark.usefixtures("apart")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(torch.relu(x)))


def gates(start=1.0):
    return {"residual_gate": {"modules": ["branch"], "start": start}}


def steps(model, optimizer, scheduler=None, num=3):
    data = torch.Generator().manual_seed(3)
    for _ in range(num):
        optimizer.zero_grad()
        model(torch.randn(16, 4, generator=data)).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_trained_weights_go_on_bit_for_bit_and_their_moments_stay():
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps(model, optimizer)
    x = torch.randn(8, 4)
    before, state = model(x), copy.deepcopy(optimizer.state[model.stem.weight])
    with upon(gates()):
        assert torch.equal(model(x), before)
        assert not differences(optimizer.state[model.stem.weight], state)
        steps(model, optimizer)
        assert model.branch.residual_gate.item() != 1 and optimizer.state[model.branch.residual_gate]


def test_a_start_of_0_leaves_the_skips_alone():
    model, x = Net(), torch.randn(8, 4)
    with upon(gates(0.0)):
        trains(model)
        assert torch.equal(model(x), model.head(model.stem(x)))


SCHEDULES = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("foreach", [False, True])
def test_schedulers_survive_the_added_parameter(schedule, foreach):
    with upon(gates()):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=foreach)
        steps(model, optimizer, schedule(optimizer))
    assert len(optimizer.param_groups) == 1


def test_model_and_optimizer_are_as_they_were_once_it_is_removed():
    model = Net()
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01)
    steps(model, optimizer)
    before = leavings(model, optimizer)
    with upon(gates()) as run:
        model(torch.randn(8, 4))
        assert len(optimizer.param_groups[0]["params"]) == len(optimizer.param_groups[0]["param_names"]) == 7
        run.change.remove()
        run.change.remove()
    assert not differences(leavings(model, optimizer)["model"], before["model"])
    assert not differences(optimizer.state_dict(), before["optimizer"])


def test_a_layer_that_nobody_trains_or_that_has_no_weights_is_refused():
    with upon(gates()), pytest.raises(NotApplicable, match="no optimizer"):
        model = Net()
        model.branch.requires_grad_(False)
        optimizer = torch.optim.SGD([*model.stem.parameters(), *model.head.parameters()], lr=0.1)
        steps(model, optimizer)
    with upon({"residual_gate": {"modules": ["0"]}}), pytest.raises(NotApplicable, match="no layer"):
        model = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))
        trains(model)
        model(torch.randn(8, 4))
