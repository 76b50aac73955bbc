"""Self-paced weights against a plain comparison."""

from __future__ import annotations

import math

import pytest
import torch

from steadygrad.schedule import self_paced_weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_is_a_comparison(dtype):
    losses = torch.tensor([[0.0, 0.5, 1.0], [2.0, -1.0, 0.99]], dtype=dtype)
    v = self_paced_weights(losses, 1.0)
    assert v.dtype == dtype and v.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert torch.equal(self_paced_weights(losses, torch.tensor(1.0)), v)


def test_threshold_is_not_rounded_to_the_dtype_of_the_losses():
    losses = torch.tensor([1.0], dtype=torch.bfloat16)
    assert self_paced_weights(losses, 1.001).item() == 1 and self_paced_weights(losses, 0.999).item() == 0


def test_non_finite_and_empty():
    losses = torch.tensor([math.nan, math.inf, -math.inf, 5.0])
    assert self_paced_weights(losses, math.inf).tolist() == [0, 0, 0, 1]
    assert self_paced_weights(torch.zeros(0, 3), 1.0).shape == (0, 3)
    assert self_paced_weights(torch.tensor(0.5), 1.0) == 1


def test_the_gradient_passes_only_through_what_is_let_in():
    x = torch.tensor([0.5, 3.0], requires_grad=True)
    losses = x.square()
    v = self_paced_weights(losses, 1.0)
    assert not v.requires_grad
    (v * losses).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_bad_input():
    for bad in ([1.0], torch.tensor([1]), torch.tensor([1j])):
        with pytest.raises(TypeError, match="losses"):
            self_paced_weights(bad, 1.0)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            self_paced_weights(torch.ones(2), bad)


def test_compiles():
    f = torch.compile(self_paced_weights, backend="eager", fullgraph=True)
    losses = torch.tensor([0.5, 2.0])
    assert torch.equal(f(losses, 1.0), self_paced_weights(losses, 1.0))
