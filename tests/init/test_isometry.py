"""The singular values of a net's Jacobian: against those of the matrix, and no trace left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadygrad.init import jacobian_singular_values


def identity_then(module: nn.Module) -> nn.Module:
    linear = nn.Linear(2, 2, bias=False)
    nn.init.eye_(linear.weight)
    return nn.Sequential(linear, module)


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_linear_net_has_the_singular_values_of_its_product():
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    values = jacobian_singular_values(net, torch.randn(3, 6))
    product = net[1].weight.double() @ net[0].weight.double()
    assert values.dtype == torch.float64 and values.shape == (3, 4)
    torch.testing.assert_close(values, torch.linalg.svdvals(product).expand(3, 4))


def test_each_example_has_its_own():
    net, x = identity_then(nn.Tanh()), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    values = jacobian_singular_values(net, x)
    torch.testing.assert_close(values, (1 - x.double().tanh() ** 2).sort(descending=True).values)


def test_shapes_of_pictures_are_flattened():
    values = jacobian_singular_values(nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 4, 4))
    assert values.shape == (1, 16)


def test_the_model_and_the_random_stream_are_left_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    net[0].weight.grad = torch.ones(4, 4)
    before = {name: p.clone() for name, p in net.named_parameters()}
    x, state = torch.randn(2, 4, requires_grad=True), torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(jacobian_singular_values(net, x), jacobian_singular_values(net, x))
    assert torch.equal(torch.get_rng_state(), state) and x.grad is None
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in net.named_parameters())
    assert net.training and net[0].weight.dtype == torch.float32
    assert torch.equal(net[0].weight.grad, torch.ones(4, 4))


def test_an_example_whose_jacobian_is_not_finite_is_nan():
    values = jacobian_singular_values(identity_then(Of(torch.sqrt)), torch.tensor([[0.0, 1.0], [1.0, 4.0]]))
    assert values[0].isnan().all() and values[1].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("model", "examples", "error", "said"),
    [
        (nn.Linear(2, 2), torch.ones(1, 2, dtype=torch.long), TypeError, "behind the embedding"),
        (nn.Linear(2, 2), torch.ones(0, 2), ValueError, "at least 1"),
        (nn.RNN(2, 2, batch_first=True), torch.ones(1, 3, 2), TypeError, "one tensor, got tuple"),
        ("net", torch.ones(1, 2), TypeError, "must be a torch.nn.Module"),
        (identity_then(Of(torch.detach)), torch.ones(1, 2), ValueError, "does not depend on the input"),
    ],
)
def test_what_it_takes(model, examples, error, said):
    with pytest.raises(error, match=said):
        jacobian_singular_values(model, examples)
