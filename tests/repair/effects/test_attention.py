"""Stabilised attention in a run that knows nothing of it."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.repair.effects.stepping import trains, upon

pytestmark = pytest.mark.usefixtures("apart")


class Written(nn.Module):
    """Attention by hand, with or without its factor."""

    def __init__(self, scale=1.0, size=8):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.scale = scale

    def forward(self, x):
        logits = self.q(x) @ self.k(x).transpose(-1, -2) * self.scale
        return logits.softmax(-1) @ self.v(x)


def net(scale=1.0):
    return nn.Sequential(nn.Linear(8, 8), Written(scale))


def test_qk_norm_hardly_changes_a_trained_model_and_its_scales_are_trained():
    torch.manual_seed(0)
    model, x = net(8**-0.5), torch.randn(2, 50, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    before = model(x).detach()
    with upon({"qk_norm": {}}) as run:
        out = model(x)
        assert torch.nn.functional.cosine_similarity(out.flatten(), before.flatten(), 0) > 0.98
        out.square().mean().backward()
        optimizer.step()
        scheduler.step()
        names = [name for name, _ in model.named_parameters() if "qk_norm" in name]
        assert len(names) == 2 and len(optimizer.param_groups[0]["params"]) == 10
        assert all(optimizer.state[p] for n, p in model.named_parameters() if n in names)
        run.change.remove()
    assert len(optimizer.param_groups[0]["params"]) == 8 == len(list(model.parameters()))


@pytest.mark.parametrize(
    "plan", [{"qk_norm": {}}, {"soft_cap": {"cap": 1.0}}, {"qk_scale": {"modules": ["1"]}}]
)
def test_removed_the_model_computes_what_it_did(plan):
    model, x = net(), torch.randn(2, 5, 8)
    before = model(x)
    with upon(plan) as run:
        trains(model)
        assert not torch.equal(model(x), before)
        run.change.remove()
        assert torch.equal(model(x), before)


def test_a_forgotten_factor_is_put_in():
    model, x = net(), torch.randn(2, 5, 8) * 5
    twin = net(1 / math.sqrt(8))
    twin.load_state_dict(model.state_dict())
    with upon({"qk_scale": {"modules": ["1"]}}):
        trains(model)
        assert torch.allclose(model(x), twin(x), atol=1e-5)


def test_models_without_attention_run_as_they_are_and_nobody_is_warned():
    model, x = nn.Linear(8, 2), torch.randn(3, 8)
    before = model(x)
    for plan in ({"qk_norm": {}}, {"soft_cap": {"cap": 50}}):
        with upon(plan):
            trains(model)
            assert torch.equal(model(x), before)
