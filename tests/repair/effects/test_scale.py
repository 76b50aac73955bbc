"""Weights made smaller, once, before the first step."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from steadygrad.repair.effects.effect import NotApplicable
from tests.repair.effects.stepping import trains, upon

pytestmark = pytest.mark.usefixtures("apart")


def changed(model, plan, x=None):
    """The model as it was, after one pass under the plan has changed it."""
    before = pickle.dumps(model)  # a copy that lives would be taken for a target network, and follow
    with upon(plan):
        trains(model)
        model(torch.randn(4, 6) if x is None else x)
    return pickle.loads(before)


def test_the_output_starts_small_and_keeps_its_bias():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    before = changed(model, {"output_scale": {"modules": ["2"], "factor": 0.05}})
    assert torch.equal(model[2].weight, before[2].weight * 0.05)
    assert torch.equal(model[2].bias, before[2].bias)
    assert torch.equal(model[0].weight, before[0].weight)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.stem(x)
        return x + self.b(torch.relu(self.a(x)))


def test_at_a_factor_of_0_a_block_is_its_skip():
    model = Residual()
    before = changed(model, {"branch_scale": {"modules": ["b"], "factor": 0.0}})
    x = torch.randn(3, 6)
    assert torch.equal(model(x), before.stem(x))


def test_zero_bias_leaves_the_weights():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2, bias=False))
    before = changed(model, {"zero_bias": {"modules": ["0", "1"]}})
    assert not model[0].bias.any()
    assert torch.equal(model[0].weight, before[0].weight) and torch.equal(model[1].weight, before[1].weight)


def test_a_weight_of_two_modules_is_multiplied_once_and_a_parametrised_one_is_assigned():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    parametrizations.weight_norm(model[2])
    before = [layer.weight.detach().clone() for layer in model]
    with upon({"output_scale": {"modules": ["0", "1", "2"], "factor": 0.5}}):
        trains(model)
        model(torch.randn(4, 6))
    assert torch.equal(model[0].weight, before[0] * 0.5)
    assert torch.allclose(model[2].weight, before[2] * 0.5)


def test_a_target_network_follows():
    model = nn.Sequential(nn.Linear(6, 6))
    target = copy.deepcopy(model).requires_grad_(False)
    changed(model, {"output_scale": {"modules": ["0"], "factor": 0.5}})
    assert torch.equal(target[0].weight, model[0].weight)


@pytest.mark.parametrize("key", ["output_scale", "branch_scale", "zero_bias"])
def test_loaded_weights_are_refused(key):
    with upon({key: {"modules": ["0"], "factor": 0.5}}), pytest.raises(NotApplicable, match="loaded"):
        model = nn.Sequential(nn.Linear(6, 6))
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        trains(model)
        model(torch.randn(4, 6))


def test_recurrent_weights_become_orthogonal_gate_by_gate():
    model = nn.LSTM(3, 5)
    state = torch.get_rng_state()
    changed(model, {"orthogonal_recurrent": {"weights": ["weight_hh_l0"]}}, torch.ones(2, 4, 3))
    assert torch.equal(torch.get_rng_state(), state)
    for block in model.weight_hh_l0.chunk(4):
        assert torch.allclose(block @ block.T, torch.eye(5), atol=1e-5)


def test_recurrent_weights_are_shrunk_to_a_radius_and_never_grown():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        model[0].weight.mul_(10)
        model[1].weight.mul_(0.1)
    before = changed(model, {"recurrent_radius": {"weights": ["0.weight", "1.weight"], "radius": 0.95}})
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(0.95, rel=1e-4)
    assert torch.equal(model[1].weight, before[1].weight)


def test_what_is_no_square_recurrent_weight_is_refused():
    with upon({"recurrent_radius": {"weights": ["0.weight"], "radius": 1}}), pytest.raises(NotApplicable):
        model = nn.Sequential(nn.Linear(6, 4))
        trains(model)
        model(torch.randn(4, 6))


def test_queries_and_keys_start_smaller_and_values_do_not():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(6, 2), "q": nn.Linear(6, 6)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["attention"](x, x, x)[0] + self.parts["q"](x)

    net = Net()
    before = copy.deepcopy(net.state_dict())
    plan = {"modules": ["parts.attention", "parts.q"], "fused": ["parts.attention"], "factor": 0.25}
    with upon({"query_key_scale": plan}):
        trains(net)
        net(torch.randn(2, 3, 6))
    after = net.state_dict()
    fused, was = after["parts.attention.in_proj_weight"], before["parts.attention.in_proj_weight"]
    assert torch.equal(fused[:12], was[:12] * 0.25) and torch.equal(fused[12:], was[12:])
    assert torch.equal(after["parts.q.weight"], before["parts.q.weight"] * 0.25)
    assert torch.equal(after["parts.attention.out_proj.weight"], before["parts.attention.out_proj.weight"])
