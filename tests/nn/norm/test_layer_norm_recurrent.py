"""Layer norm inside LSTM and GRU: the paper's equations, and what they are for."""

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.nn.norm import LayerNormGRU, LayerNormLSTM
from tests.nn.norm import oracles
from tests.nn.norm.cases import output


def drawn(kind, **settings):
    torch.manual_seed(0)
    layer = kind(3, 4, **settings, dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return layer


def test_lstm_is_the_papers():
    layer = drawn(LayerNormLSTM)
    p = oracles.arrays(layer)
    x, h, c = torch.randn(6, 3).double(), torch.randn(1, 4).double(), torch.randn(1, 4).double()
    y, (h_n, c_n) = layer(x, (h, c))
    want, h_want, c_want = oracles.layer_norm_lstm(p, x.numpy(), h[0].numpy(), c[0].numpy(), "_l0", 1e-5)
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-10)
    np.testing.assert_allclose(h_n[0].detach().numpy(), h_want, rtol=1e-10)
    np.testing.assert_allclose(c_n[0].detach().numpy(), c_want, rtol=1e-10)


def test_gru_is_the_papers():
    layer = drawn(LayerNormGRU, eps=1e-3)
    x, h = torch.randn(6, 3).double(), torch.randn(1, 4).double()
    y, h_n = layer(x, h)
    want, h_want = oracles.layer_norm_gru(oracles.arrays(layer), x.numpy(), h[0].numpy(), "_l0", 1e-3)
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-10)
    np.testing.assert_allclose(h_n[0].detach().numpy(), h_want, rtol=1e-10)


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_both_directions_of_two_layers_are_built_from_the_twin(kind):
    layer = drawn(kind, num_layers=2, bidirectional=True)
    p, x = oracles.arrays(layer), torch.randn(5, 3).double()

    def twin(values, suffix):
        zeros = np.zeros(4)
        if kind is LayerNormGRU:
            return oracles.layer_norm_gru(p, values, zeros, suffix, 1e-5)[0]
        return oracles.layer_norm_lstm(p, values, zeros, zeros, suffix, 1e-5)[0]

    values = x.numpy()
    for i in range(2):
        forward, backward = twin(values, f"_l{i}"), twin(values[::-1], f"_l{i}_reverse")[::-1]
        values = np.concatenate([forward, backward], 1)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), values, rtol=1e-9)


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_gradients(kind):
    layer = drawn(kind, bidirectional=True)
    x = torch.randn(3, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: output(layer(x)), (x,))


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_the_scale_of_the_weights_has_no_effect(kind):
    """What the norm is for: recurrent weights that grow do not saturate the gates."""
    layer, x = drawn(kind, eps=1e-12), torch.randn(6, 5, 3).double()
    want = output(layer(x, None))
    with torch.no_grad():
        layer.weight_hh_l0.mul_(100.0)
        layer.weight_ih_l0.mul_(0.1)
    torch.testing.assert_close(output(layer(x)), want, rtol=1e-6, atol=1e-6)


def test_the_gradient_through_time_does_not_explode_where_the_plain_lstms_does():
    torch.manual_seed(0)
    norms = {}
    for kind in (nn.LSTM, LayerNormLSTM):
        layer = kind(8, 32)
        with torch.no_grad():
            for name, p in layer.named_parameters():
                if name.startswith("weight"):
                    p.normal_(0.0, 2.0 / 32**0.5)
                    if name.startswith("weight_hh"):
                        p.mul_(4.0)
        h = torch.randn(1, 4, 32).mul_(0.1).requires_grad_()
        y, _ = layer(torch.randn(60, 4, 8) * 0.1, (h, torch.zeros(1, 4, 32)))
        y[-1].sum().backward()
        norms[kind] = h.grad.norm().item()
    assert norms[nn.LSTM] > 1e3 * norms[LayerNormLSTM], norms


def test_zero_input_and_zero_weights_give_finite_gradients():
    for kind in (LayerNormLSTM, LayerNormGRU):
        layer = kind(3, 4)
        with torch.no_grad():
            for name, p in layer.named_parameters():
                if name.startswith("weight"):
                    p.zero_()
        output(layer(torch.zeros(4, 2, 3))).sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
