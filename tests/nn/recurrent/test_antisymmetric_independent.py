"""What is special to AntisymmetricRNN and IndRNN: the growth of a step, and the bound on recurrent weights."""

from __future__ import annotations

import math

import pytest
import torch

from steadygrad.nn.recurrent import AntisymmetricRNN, IndRNN, recurrent_bound


@pytest.mark.parametrize(("eps", "gamma", "sigma_w"), [(0.1, 0.0, 1.0), (0.1, 0.5, 4.0), (0.01, 0.01, 1.0)])
def test_step_growth_is_the_spectral_radius_of_a_step(eps, gamma, sigma_w):
    rnn = AntisymmetricRNN(3, 12, num_layers=2, eps=eps, gamma=gamma, sigma_w=sigma_w)
    radii = []
    for layer in rnn.layers:
        weight = layer.weight_hh.detach().double()
        matrix = weight - weight.T - gamma * torch.eye(12)
        values = torch.linalg.eigvals(matrix)
        torch.testing.assert_close(values.real, torch.full((12,), -gamma, dtype=torch.float64))
        radii.append((1 + eps * values).abs().max().item())
    assert rnn.step_growth() == pytest.approx(max(radii), rel=1e-6)


def test_step_growth_bounds_a_run_of_the_linearised_flow():
    rnn = AntisymmetricRNN(3, 16, eps=0.05, gamma=0.0, bias=False)
    h_0 = (torch.randn(1, 1, 16) * 1e-4).requires_grad_()  # where tanh is the identity
    _, h_n = rnn(torch.zeros(200, 1, 3), h_0)
    above = torch.randn(1, 1, 16)
    (below,) = torch.autograd.grad(h_n, h_0, above)
    assert 1.0 <= below.norm() / above.norm() <= rnn.step_growth() ** 200 * (1 + 1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_the_start_is_the_papers(gated):
    rnn = AntisymmetricRNN(3, 200, num_layers=2, bidirectional=True, gated=gated, sigma_w=2.0)
    for layer in rnn.layers:
        for block in layer.weight_ih.split(200):  # V_h, and V_z below it
            assert block.std().item() == pytest.approx(block.shape[1] ** -0.5, rel=0.1)
            assert block.abs().max() > 2.4 * block.shape[1] ** -0.5  # normal: a uniform one ends at sqrt(3)
        assert layer.weight_hh.std().item() == pytest.approx(2.0 * 200**-0.5, rel=0.05)
        assert (layer.bias == 0).all()


def test_small_steps_add_up_in_half_precision():
    rnn = AntisymmetricRNN(3, 16, eps=0.002)
    x = torch.ones(500, 1, 3)
    expected, _ = rnn(x)
    output, _ = rnn.to(torch.bfloat16)(x.bfloat16())
    assert (output.float() - expected)[-1].norm() < 0.05 * expected[-1].norm()


def test_enough_diffusion_makes_the_step_contract():
    rnn = AntisymmetricRNN(3, 16, eps=0.05, gamma=0.0)
    assert rnn.step_growth() > 1
    turn = ((rnn.step_growth() ** 2 - 1) ** 0.5) / 0.05
    assert AntisymmetricRNN(3, 16, eps=0.05, gamma=0.05 * turn**2, sigma_w=0.0).step_growth() < 1


def test_bound_of_recurrent_weights():
    assert recurrent_bound(100) ** 100 == pytest.approx(2.0)
    assert recurrent_bound(7, gamma=1.0) == 1.0
    rnn = IndRNN(3, 8, num_layers=2, bound=0.7)
    assert all(0 <= layer.weight_hh.min() and layer.weight_hh.max() <= 0.7 for layer in rnn.layers)
    with torch.no_grad():
        for layer in rnn.layers:
            layer.weight_hh.copy_(torch.tensor([-5.0, -0.7, -0.1, 0.0, 0.3, 0.7, 5.0, math.nan]))
    rnn.clamp_()
    kept = torch.tensor([-0.7, -0.7, -0.1, 0.0, 0.3, 0.7, 0.7])
    for layer in rnn.layers:
        assert torch.equal(layer.weight_hh[:7], kept) and layer.weight_hh[7].isnan()
        assert layer.weight_hh.requires_grad


def test_the_gradient_of_a_unit_is_a_power_of_its_weight():
    rnn = IndRNN(1, 3, bias=False)
    with torch.no_grad():
        rnn.layers[0].weight_hh.copy_(torch.tensor([0.5, 1.0, 1.1]))
    h_0 = torch.ones(1, 1, 3, requires_grad=True)
    _, h_n = rnn(torch.zeros(20, 1, 1), h_0)
    (grad,) = torch.autograd.grad(h_n.sum(), h_0)
    torch.testing.assert_close(grad.flatten(), torch.tensor([0.5, 1.0, 1.1]) ** 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AntisymmetricRNN(3, 4, eps=0.0), "eps must be finite and above 0, got 0.0"),
        (lambda: AntisymmetricRNN(3, 4, gamma=-1.0), "gamma must be finite and at least 0, got -1.0"),
        (lambda: AntisymmetricRNN(3, 4, sigma_w=math.inf), "sigma_w must be finite and at least 0, got inf"),
        (lambda: IndRNN(3, 4, bound=0.0), "bound must be finite and above 0, got 0.0"),
        (lambda: IndRNN(3, 4, nonlinearity="gelu"), "nonlinearity must be one of relu, tanh, got 'gelu'"),
        (lambda: recurrent_bound(0), "num_steps must be at least 1, got 0"),
        (lambda: recurrent_bound(5, gamma=math.nan), "gamma must be finite and above 0, got nan"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="eps must be a number, got str"):
        AntisymmetricRNN(3, 4, eps="1")
