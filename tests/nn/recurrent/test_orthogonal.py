"""Orthogonal recurrences: equal to torch's RNN with the same matrix, and orthogonal for the whole training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence

from steadygrad.init import orthogonal_recurrent_
from steadygrad.nn.recurrent import ModReLU, OrthogonalRNN, mod_relu, orthogonal_recurrence

MAPS = ("matrix_exp", "cayley", "householder")
TORCHS = {
    "rnn": lambda **s: nn.RNN(3, 6, **s),
    "relu": lambda **s: nn.RNN(3, 6, nonlinearity="relu", **s),
    "lstm": lambda **s: nn.LSTM(3, 6, **s),
    "gru": lambda **s: nn.GRU(3, 6, **s),
}
GATES = {"rnn": 1, "relu": 1, "lstm": 4, "gru": 3}
over_torchs = pytest.mark.parametrize("kind", TORCHS)


def distance_from_orthogonal(weight, gates):
    blocks = weight.detach().double().unflatten(0, (gates, -1))
    return (blocks.mT @ blocks - torch.eye(blocks.shape[-1], dtype=torch.float64)).abs().max().item()


def hidden(module):
    """The hidden-to-hidden weights as the module computes them."""
    return [getattr(module, n) for n in module._flat_weights_names if n.startswith("weight_hh")]


def plain(module, kind, **settings):
    """torch's module with the numbers of the parametrized one, and no parametrization."""
    twin = TORCHS[kind](**settings).to(module.weight_ih_l0.dtype)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(getattr(module, name))
    return twin


@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str
)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_layer_equals_torchs_rnn_with_the_same_matrices(nonlinearity, settings):
    ours = OrthogonalRNN(3, 6, nonlinearity=nonlinearity, **settings)
    torchs = nn.RNN(3, 6, nonlinearity=nonlinearity, **settings)
    with torch.no_grad():
        for i, layer in enumerate(ours.layers):
            layer.bias.uniform_(-0.5, 0.5)
            depth, back = divmod(i, ours.num_directions)
            end = f"l{depth}" + ("_reverse" if back else "")
            for name, value in (
                ("weight_ih", layer.weight_ih),
                ("weight_hh", layer.weight_hh),
                ("bias_ih", layer.bias),
            ):
                getattr(torchs, f"{name}_{end}").copy_(value)
            getattr(torchs, f"bias_hh_{end}").zero_()
    x = torch.randn(5, 4, 3)
    hx = torch.randn_like(torchs(x)[1])
    packed = pack_sequence([torch.randn(n, 3) for n in (5, 2, 3)], enforce_sorted=False)
    for args in ((x,), (x, hx), (packed,), (x[0],)):
        for a, b in zip(ours(*args), torchs(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("orthogonal_map", MAPS)
def test_layer_is_orthogonal_after_50_steps(orthogonal_map):
    rnn = OrthogonalRNN(3, 8, num_layers=2, orthogonal_map=orthogonal_map)
    start = rnn.layers[0].weight_hh.detach().clone()
    assert distance_from_orthogonal(start, 1) < 1e-6
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.03)
    for _ in range(50):
        output, _ = rnn(torch.randn(6, 4, 3))
        optimizer.zero_grad()
        (output - 1).square().mean().backward()
        optimizer.step()
    for layer in rnn.layers:
        assert distance_from_orthogonal(layer.weight_hh, 1) < 1e-5
    assert (rnn.layers[0].weight_hh - start).norm() > 0.3  # it has learned


@pytest.mark.parametrize("orthogonal_map", [None, "cayley", "householder"])
@over_torchs
def test_torchs_modules_use_an_orthogonal_weight_after_50_steps(kind, orthogonal_map):
    module = orthogonal_recurrence(TORCHS[kind](num_layers=2), orthogonal_map)
    start = module.weight_hh_l0.detach().clone()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(50):
        output, _ = module(torch.randn(6, 4, 3))
        optimizer.zero_grad()
        (output - 0.5).square().mean().backward()
        optimizer.step()
    for weight in hidden(module):
        assert distance_from_orthogonal(weight, GATES[kind]) < 1e-5
    assert (module.weight_hh_l0 - start).norm() > 0.3
    x = torch.randn(6, 4, 3)  # and this is the weight that the fused kernel multiplies with
    torch.testing.assert_close(module(x)[0], plain(module, kind, num_layers=2)(x)[0], rtol=0, atol=0)


@over_torchs
def test_gradients_are_those_through_the_map(kind):
    module = orthogonal_recurrence(TORCHS[kind]().double())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    raw = module.parametrizations.weight_hh_l0.original
    with torch.no_grad():
        raw.add_(torch.randn_like(raw) * 0.3)
    module(x)[0].square().sum().backward()
    twin = plain(module, kind)
    twin(x)[0].square().sum().backward()
    (expected,) = torch.autograd.grad(module.weight_hh_l0, raw, twin.weight_hh_l0.grad)
    torch.testing.assert_close(raw.grad, expected)
    torch.testing.assert_close(module.weight_ih_l0.grad, twin.weight_ih_l0.grad)
    step, index = 1e-6, (3, 1)
    values = []
    for sign in (1, -1):  # by a difference, too
        with torch.no_grad():
            raw[index] += sign * step
        values.append(module(x)[0].square().sum().item())
        with torch.no_grad():
            raw[index] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(raw.grad[index].item(), rel=1e-5)


@over_torchs
def test_a_parametrized_module_lives_on_as_any_other(kind):
    module = orthogonal_recurrence(TORCHS[kind](bidirectional=True))
    x = torch.randn(5, 2, 3)
    output, _ = module(x)
    output.sum().backward()
    twin = copy.deepcopy(module)  # torch leaves results of autograd in the module, which cannot be copied
    assert torch.equal(twin(x)[0], output)
    with torch.no_grad():
        twin.parametrizations.weight_hh_l0.original.add_(torch.randn(6 * GATES[kind], 6))
    assert not torch.equal(twin(x)[0], output) and torch.equal(module(x)[0], output)
    assert torch.equal(module.forward(x)[0], output)  # without the hooks of __call__
    module.flatten_parameters()
    with torch.no_grad():
        assert torch.equal(module(x)[0], output)
    with parametrize.cached():
        torch.autograd.grad(module(x)[0].sum(), module.parametrizations.weight_hh_l0.original)
        assert torch.equal(module(x)[0], output)
    other = orthogonal_recurrence(TORCHS[kind](bidirectional=True))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x)[0], output)
    copy.deepcopy(module.to(torch.float64))
    assert module(x.double())[0].dtype == torch.float64
    module.to(torch.float32)
    last = module(x)[0]
    weights = [w.clone() for w in hidden(module)]
    for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
        parametrize.remove_parametrizations(module, name)
    assert type(module) in (nn.RNN, nn.LSTM, nn.GRU)
    assert all(torch.equal(a, b) for a, b in zip(hidden(module), weights, strict=True))
    assert torch.equal(module(x)[0], last)
    module.zero_grad()
    module(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_map_is_worked_out_once_a_call():
    module, calls = orthogonal_recurrence(nn.LSTM(3, 6)), []
    module.parametrizations.weight_hh_l0[0].register_forward_hook(lambda *_: calls.append(1))
    module(torch.randn(50, 2, 3))
    assert len(calls) == 1


def test_one_module_does_not_change_another():
    module, other = orthogonal_recurrence(nn.LSTM(3, 6)), nn.LSTM(3, 6)
    assert type(other) is nn.LSTM and not hasattr(nn.LSTM, "_flat_weights")
    x = torch.randn(5, 2, 3)
    module(x)
    other(x)[0].sum().backward()
    assert other.weight_hh_l0.grad is not None and other._flat_weights[1] is other.weight_hh_l0


@pytest.mark.parametrize(("cell", "gates"), [(nn.RNNCell, 1), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_cells(cell, gates):
    module = orthogonal_recurrence(cell(3, 6))
    with torch.no_grad():
        module.parametrizations.weight_hh.original.add_(torch.randn(6 * gates, 6))
    assert distance_from_orthogonal(module.weight_hh, gates) < 1e-5
    out = module(torch.randn(2, 3))
    (out[0] if cell is nn.LSTMCell else out).sum().backward()
    assert module.parametrizations.weight_hh.original.grad is not None


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections_have_orthonormal_columns():
    module = orthogonal_recurrence(nn.LSTM(3, 6, proj_size=2))
    assert module.weight_hh_l0.shape == (24, 2)
    assert distance_from_orthogonal(module.weight_hh_l0, 4) < 1e-5
    assert module(torch.randn(5, 2, 3))[0].shape == (5, 2, 2)


def test_orthogonal_weights_are_kept_and_others_become_their_q_factor():
    module = nn.LSTM(3, 6)
    orthogonal_recurrent_(module)
    before = module.weight_hh_l0.detach().clone()
    torch.testing.assert_close(orthogonal_recurrence(module).weight_hh_l0.detach(), before, rtol=0, atol=1e-6)
    rnn = nn.RNN(3, 6)
    q, r = torch.linalg.qr(rnn.weight_hh_l0.detach())
    q = q * r.diagonal().sign()
    torch.testing.assert_close(orthogonal_recurrence(rnn).weight_hh_l0.detach(), q, rtol=1e-5, atol=1e-5)
    zero = nn.RNN(3, 6)
    nn.init.zeros_(zero.weight_hh_l0)
    assert distance_from_orthogonal(orthogonal_recurrence(zero).weight_hh_l0, 1) < 1e-6


def test_half_precision_rounds_an_orthogonal_matrix():
    module = orthogonal_recurrence(nn.GRU(3, 6)).to(torch.bfloat16)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original.add_(torch.randn(18, 6))
    assert distance_from_orthogonal(module.weight_hh_l0, 3) < 0.03
    assert module(torch.randn(5, 2, 3, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    made_in_half = orthogonal_recurrence(nn.GRU(3, 6, dtype=torch.bfloat16))
    assert distance_from_orthogonal(made_in_half.weight_hh_l0, 3) < 0.03
    rnn = OrthogonalRNN(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance_from_orthogonal(rnn.layers[0].weight_hh, 1) < 1e-5


def test_a_plain_rnn_explodes_where_this_one_does_not():
    steps, x = 500, torch.zeros(500, 1, 3)
    growth = {}
    for name in ("free", "held"):
        rnn = nn.RNN(3, 32, nonlinearity="relu")
        nn.init.normal_(rnn.weight_hh_l0, std=2.5 / math.sqrt(32))
        if name == "held":
            orthogonal_recurrence(rnn)
        h_0 = torch.rand(1, 1, 32, requires_grad=True)
        _, h_n = rnn(x[:steps] * 0 + torch.rand(3), h_0)
        (grad,) = torch.autograd.grad(h_n, h_0, torch.randn(1, 1, 32).div(32**0.5))
        growth[name] = grad.norm().item()
    assert not growth["free"] < 1e10 and growth["held"] <= 2.0


def test_modrelu():
    module = ModReLU(4)
    z = torch.tensor([-0.0, 0.0, -3.0, 2.0], requires_grad=True)
    assert torch.equal(module(z), z) and torch.equal(
        torch.autograd.grad(module(z).sum(), z)[0], torch.ones(4)
    )
    for b in (-1.0, 0.5):
        z = torch.randn(200, 1, dtype=torch.float64, requires_grad=True)
        bias = torch.full((1,), b, dtype=torch.float64, requires_grad=True)
        size = z.abs() + bias
        expected = torch.where(size >= 0, size * z / z.abs(), 0.0)
        torch.testing.assert_close(mod_relu(z, bias), expected)
        assert torch.autograd.gradcheck(mod_relu, (z, bias))
        slopes = torch.autograd.grad(mod_relu(z, bias).sum(), z)[0].unique()
        assert set(slopes.tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(F.relu(size.detach()), mod_relu(z, bias).abs().detach())
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    out = mod_relu(odd, torch.tensor(-1.0))
    assert out[0].isnan() and out[1:].tolist() == [math.inf, -math.inf, 0.0]
    assert module(torch.zeros(0, 4)).shape == (0, 4) and repr(module) == "ModReLU(4)"
    assert module.to(torch.bfloat16)(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(
        TypeError, match="must be an RNN, LSTM or GRU of torch.nn or one of their cells, got Linear"
    ):
        orthogonal_recurrence(nn.Linear(3, 3))
    with pytest.raises(
        ValueError, match="orthogonal_map must be one of matrix_exp, cayley, householder, got 'qr'"
    ):
        orthogonal_recurrence(nn.RNN(3, 3), "qr")
    module = orthogonal_recurrence(nn.RNN(3, 3))
    with pytest.raises(ValueError, match="'weight_hh_l0' has a parametrization already"):
        orthogonal_recurrence(module)
    broken = nn.RNN(3, 3, num_layers=2)
    nn.init.constant_(broken.weight_hh_l1, math.nan)
    with pytest.raises(ValueError, match="holds inf or nan"):
        orthogonal_recurrence(broken)
    assert type(broken) is nn.RNN  # nothing was changed, the first layer neither
    with pytest.raises(ValueError, match="nonlinearity must be one of tanh, relu, modrelu, got 'gelu'"):
        OrthogonalRNN(3, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="num_features must be at least 1"):
        ModReLU(0)
