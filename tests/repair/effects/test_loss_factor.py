"""A factor on every backward pass equals a loss that is multiplied by it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under


def train(factor=1.0, *, scaled=False, penalty=False, passes=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
    printed = []
    for _ in range(8):
        x = torch.randn(8, 6, requires_grad=penalty)
        optimizer.zero_grad()
        for _ in range(passes):
            out = model(x)
            loss = F.mse_loss(out, x.detach().sum(1, keepdim=True))
            if penalty:
                loss = loss + torch.autograd.grad(out.sum(), x, create_graph=True)[0].square().mean()
            printed.append(loss.item())
            scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    return {k: v.clone() for k, v in model.state_dict().items()}, printed


@pytest.mark.parametrize("how", [{}, {"scaled": True}, {"penalty": True}, {"passes": 3}], ids=str)
def test_equals_the_script_that_multiplies_its_loss(how):
    with under({"gradient_factor": 0.125}):
        changed, printed = train(**how)
    edited, _ = train(0.125, **how)
    assert differences(changed, edited) == []
    plain, first = train(**how)
    assert differences(changed, plain) != []
    assert printed[0] == first[0], "what the script prints is its own loss"


def test_a_closure_that_is_evaluated_again_gets_it_once_each_time():
    seen = []
    with under({"gradient_factor": 0.25}):
        w = torch.full((1,), 2.0, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], lr=0.1, max_iter=3)

        def closure():
            optimizer.zero_grad()
            loss = w.square().sum()
            loss.backward()
            seen.append(w.grad.item() / w.item())
            return loss

        optimizer.step(closure)
    assert len(seen) == 3 and seen == pytest.approx([0.5] * 3)


def test_a_loss_that_is_differentiated_twice_gets_it_once_each_time():
    with under({"gradient_factor": 0.25}):
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1.0)
        loss = w.sum()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        assert w.grad.tolist() == [0.5] * 3
        optimizer.step()
    w.grad = None
    loss.backward()
    assert w.grad.tolist() == [1.0] * 3, "nothing is left on the graph"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), None])
def test_a_value_that_means_nothing_is_refused(value):
    with pytest.raises(NotApplicable):
        Change({"gradient_factor": value})
