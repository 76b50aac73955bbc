"""What is special to Nero: the balance of its neurons."""

from __future__ import annotations

import pytest
import torch

from steadygrad.optim import Nero, balance_
from tests.optim.cases import draw, give


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_balanced_neurons_sum_to_zero_and_their_squares_to_one(dtype):
    weight = balance_(draw(0, dtype, ((5, 3, 2, 2),))[0]).flatten(1).double()
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(weight.sum(1), torch.zeros(5).double(), rtol=0, atol=4 * tolerance)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(5).double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-20])
@pytest.mark.parametrize("width", [1, 3, 7, 1000])
def test_neurons_of_equal_weights_have_no_balance_and_stay(value, width):
    weight = torch.full((2, width), value)
    assert torch.equal(balance_(weight), torch.full((2, width), value))


def test_vectors_and_empty_weights_stay():
    for shape in [(4,), (), (0, 3), (3, 0)]:
        weight = torch.ones(shape)
        assert torch.equal(balance_(weight), torch.ones(shape))


def test_neurons_stay_balanced_and_are_so_from_the_start():
    weight, bias = (torch.nn.Parameter(w) for w in draw(0, shapes=((6, 4), (6,))))
    kept = bias.detach().clone()
    optimizer = Nero([weight, bias], lr=0.05)
    assert torch.equal(bias, kept)
    for seed in range(10):
        torch.testing.assert_close(weight.detach().sum(1), torch.zeros(6), rtol=0, atol=1e-6)
        torch.testing.assert_close(weight.detach().norm(dim=1), torch.ones(6), rtol=0, atol=1e-6)
        give([weight, bias], draw(seed, shapes=((6, 4), (6,))))
        optimizer.step()


def test_each_neuron_turns_by_the_angle_lr_at_first():
    """A gradient at right angles to a balanced neuron, and balanced, turns it by arctan(lr)."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]))
    optimizer = Nero([weight], lr=0.1)
    before = weight.detach().clone()
    weight.grad = torch.tensor([[1.0, 1.0, -2.0], [1e6, 1e6, -2e6]])
    optimizer.step()
    angle = torch.arccos((weight.detach() * before).sum(1))
    torch.testing.assert_close(angle, torch.full((2,), 0.1).atan(), rtol=1e-4, atol=0)


def test_free_neurons_are_not_touched_when_the_optimizer_is_made():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    Nero([weight], constraints=False)
    assert (weight == 1).all()
