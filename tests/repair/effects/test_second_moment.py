"""Adam's second moment: a run under the plan equals the script with that number, or that clipped step."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from steadygrad.clip import clipped_updates
from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import Models, NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, under


def train(*, beta2=0.999, eps=1e-8, clipped=False, scaled=False, fused=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.9, beta2), eps=eps, fused=fused)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for i in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 2) * (1 + 20 * (i == 12)))
        scaler.scale(loss).backward()
        if clipped:
            scaler.unscale_(optimizer)
        with clipped_updates(optimizer) if clipped else nullcontext():
            scaler.step(optimizer)
        scaler.update()
        schedule.step()
    return leavings(model, optimizer)["model"]


@pytest.mark.parametrize(
    ("plan", "edit"),
    [
        ({"beta2": 0.95}, {"beta2": 0.95}),
        ({"adam_eps": 1e-3}, {"eps": 1e-3}),
        ({"update_clip": 1.0}, {"clipped": True}),
    ],
    ids=str,
)
def test_equals_the_script_that_was_edited(plan, edit):
    with under(plan):
        changed = train()
    assert differences(changed, train(**edit)) == []
    assert differences(changed, train()) != []


@pytest.mark.parametrize("fused", [True, False])
def test_updates_are_clipped_without_the_scale_of_a_scaler(fused):
    with under({"update_clip": 1.0}):
        changed = train(scaled=True, fused=fused)
    assert differences(changed, train(scaled=True, fused=fused, clipped=True)) == []


def test_updates_within_the_bound_are_left():
    with under({"update_clip": 1e6, "adam_eps": 1e-12}):
        changed = train()
    assert differences(changed, train()) == []


def test_groups_are_whole_again_after_a_step_that_raises():
    class Raises(torch.optim.AdamW):
        def step(self, closure=None):
            if len(self.state) == 1:
                raise LookupError(len(self.param_groups))
            return super().step(closure)

    with under({"update_clip": 1.0, "lr_factor": 0.5}):
        w = torch.ones(2, requires_grad=True)
        optimizer = Raises([w], lr=1.0)
        groups = optimizer.param_groups
        w.sum().backward()
        optimizer.step()
        w.grad = torch.full((2,), 100.0)
        with pytest.raises(LookupError, match="2"):
            optimizer.step()
        assert optimizer.param_groups is groups and len(groups) == 1 and groups[0]["lr"] == 1.0


def test_updates_of_another_optimizer_are_refused_before_the_first_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    effect = Change({"update_clip": 1.0})._effects[0]
    with pytest.raises(NotApplicable, match="SGD"):
        effect.models(Models(optimizers=(optimizer,)))


@pytest.mark.parametrize("plan", [{"beta2": 1.0}, {"beta2": "0.9"}, {"adam_eps": 0.0}, {"update_clip": -1.0}])
def test_a_value_that_means_nothing_is_refused(plan):
    with pytest.raises(NotApplicable):
        Change(plan)
