"""Loops that forget zero_grad equal those that do not; loops that are right are left as they are."""

import pytest
import torch
from torch import nn

from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under


def plain(clears, passes=1):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(6):
        if clears:
            optimizer.zero_grad()
        for _ in range(passes):
            model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        assert model.weight.grad.any(), "whoever logs gradients after the step finds them"
    return {k: v.clone() for k, v in model.state_dict().items()}


def gan(clears, passes=1):
    """The generator's backward pass fills the critic's gradients."""
    torch.manual_seed(0)
    critic, generator = nn.Linear(4, 1), nn.Linear(2, 4)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (critic, generator)]
    for _ in range(6):
        for optimizer, sign in zip(optimizers, (1, -1), strict=True):
            if clears:
                optimizer.zero_grad()
            loss = critic(generator(torch.randn(8, 2))).mean() - critic(torch.randn(8, 4)).square().mean()
            (sign * loss).backward()
            optimizer.step()
    return {**critic.state_dict(), **{f"g.{k}": v for k, v in generator.state_dict().items()}}


def both_then_step(clears, passes=1):
    torch.manual_seed(0)
    models = nn.Linear(4, 1), nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    for _ in range(6):
        if clears:
            for optimizer in optimizers:
                optimizer.zero_grad()
        for model in models:
            model(torch.randn(8, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    return {str(i): m.weight.detach().clone() for i, m in enumerate(models)}


def closure(clears, passes=1):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    x = torch.randn(16, 4)

    def evaluate():
        if clears:
            optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(evaluate)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("loop", "passes"), [(plain, 1), (plain, 3), (gan, 1), (both_then_step, 1), (closure, 1)]
)
def test_a_loop_that_forgets_to_clear_equals_one_that_does_not(loop, passes):
    right, wrong = loop(True, passes), loop(False, passes)
    with under({"zero_gradients": 1}):
        mended, left = loop(False, passes), loop(True, passes)
    assert differences(mended, right) == []
    assert differences(left, right) == []
    assert differences(wrong, right) != []


def test_it_hears_of_steps_that_another_optimizer_takes():
    other = {"optimizer": {"name": "SGD", "lr": 0.1}}
    with under(other):
        right, wrong = plain(True), plain(False)
    with under({**other, "zero_gradients": 1}):
        mended = plain(False)
    assert differences(mended, right) == [] and differences(mended, wrong) != []
