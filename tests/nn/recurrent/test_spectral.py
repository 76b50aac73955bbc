"""Spectral norms of gates, the clamp after a step, and the parametrization that holds the bound."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from steadygrad.nn.recurrent import (
    SpectralNormBound,
    bound_recurrent_spectral_norm,
    clamp_spectral_norm_,
    recurrent_spectral_norms,
    spectral_norms,
)

TORCHS = {"rnn": (nn.RNN, 1), "lstm": (nn.LSTM, 4), "gru": (nn.GRU, 3)}
over_torchs = pytest.mark.parametrize("kind", TORCHS)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def of_blocks(weight, num_blocks):
    """The slow twin: the square root of the largest eigenvalue of W^T W, block by block, in float64."""
    blocks = weight.detach().double().flatten(1).chunk(num_blocks)
    return torch.stack([torch.linalg.eigvalsh(b.T @ b).max().clamp_min(0).sqrt() for b in blocks])


@pytest.mark.parametrize("shape", [(12, 4), (12, 9), (12, 3, 2, 2), (4, 1)])
@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_agree_with_the_twin(shape, num_blocks, dtype):
    weight = torch.randn(shape).to(dtype)
    norms = spectral_norms(weight, num_blocks)
    assert norms.shape == (num_blocks,)
    assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(norms.double(), of_blocks(weight, num_blocks), rtol=rtol, atol=0)


def test_power_iteration_is_a_lower_bound_that_comes_near():
    weight = torch.randn(80, 20, dtype=torch.float64)
    exact = spectral_norms(weight, 4)
    rows = weight.view(4, 20, 20).norm(dim=2).amax(1)
    before = rows
    for iterations in (1, 3, 10, 300):
        estimate = spectral_norms(weight, 4, iterations)
        assert (before - 1e-12 <= estimate).all() and (estimate <= exact + 1e-12).all()
        before = estimate
    torch.testing.assert_close(before, exact, rtol=1e-6, atol=0)
    assert spectral_norms(torch.zeros(4, 4), 2, 5).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("iterations", [None, 200])
def test_gradient_is_that_of_torchs_norm(iterations):
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(spectral_norms(weight, 1, iterations).sum(), weight)
    (torchs,) = torch.autograd.grad(torch.linalg.matrix_norm(weight, 2), weight)
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-8)


def test_gradient_is_finite_at_equal_singular_values_and_at_zero():
    for weight in (torch.eye(4), torch.zeros(4, 4)):
        weight = weight.clone().requires_grad_()
        (grad,) = torch.autograd.grad(SpectralNormBound(0.5)(weight).sum(), weight)
        assert grad.isfinite().all()


@pytest.mark.parametrize("iterations", [None, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_shrinks_only_the_blocks_above(dtype, iterations):
    weight = torch.randn(16, 4)
    weight[:4] *= 0.01
    weight[4:8] = 1e-30
    weight = weight.to(dtype)
    before = weight.clone()
    expected = of_blocks(before, 4)
    norms = clamp_spectral_norm_(weight, 1.0, 4, iterations)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-3, atol=1e-30)
    assert torch.equal(weight[:8], before[:8])  # bit for bit
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        of_blocks(weight, 4)[2:], torch.ones(2, dtype=torch.float64), rtol=4 * eps + 1e-4, atol=0
    )
    direction = before[8:].double() / expected[2:].repeat_interleave(4)[:, None]
    torch.testing.assert_close(weight[8:].double(), direction, rtol=4 * eps + 1e-4, atol=1e-6)


def test_clamp_at_the_edges():
    zero, empty = torch.zeros(4, 4), torch.zeros(0, 4)
    assert clamp_spectral_norm_(zero, 1.0, 2).tolist() == [0.0, 0.0] and torch.equal(zero, torch.zeros(4, 4))
    assert clamp_spectral_norm_(empty, 1.0).tolist() == [0.0]
    for bad in (math.nan, math.inf):
        weight = torch.randn(8, 4) * 10
        weight[1, 2] = bad
        before = weight.clone()
        norms = clamp_spectral_norm_(weight, 1.0, 2)
        assert norms[0].isnan() and norms[1] > 1
        assert torch.equal(weight[:4].nan_to_num(7), before[:4].nan_to_num(7))
        assert of_blocks(weight[4:], 1) == pytest.approx(1.0, rel=1e-5)
    parameter = nn.Parameter(torch.randn(4, 4) * 10)
    clamp_spectral_norm_(parameter, 1.0)
    assert parameter.requires_grad and parameter.grad_fn is None


def test_clamp_keeps_a_training_within_the_bound():
    rnn = nn.RNN(3, 8)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.5)
    above = 0
    for _ in range(20):
        output, _ = rnn(torch.randn(5, 4, 3))
        optimizer.zero_grad()
        (output - 1).square().sum().backward()
        optimizer.step()
        above += bool(clamp_spectral_norm_(rnn.weight_hh_l0, 0.9) > 0.9)
        assert of_blocks(rnn.weight_hh_l0, 1) <= 0.9 * (1 + 1e-5)
    assert above > 0


@over_torchs
def test_norms_of_torchs_modules(kind):
    make, gates = TORCHS[kind]
    module = make(3, 5, num_layers=2, bidirectional=True)
    norms = recurrent_spectral_norms(module)
    assert list(norms) == ["weight_hh_l0", "weight_hh_l0_reverse", "weight_hh_l1", "weight_hh_l1_reverse"]
    for name, values in norms.items():
        torch.testing.assert_close(
            values.double(), of_blocks(getattr(module, name), gates), rtol=1e-5, atol=0
        )
        assert not values.requires_grad
    with pytest.raises(TypeError, match="got Linear"):
        recurrent_spectral_norms(nn.Linear(3, 3))


@pytest.mark.parametrize("iterations", [None, 3])
@over_torchs
def test_a_bound_that_is_kept_changes_nothing(kind, iterations):
    make, _ = TORCHS[kind]
    module = make(3, 5, num_layers=2)
    plain = copy.deepcopy(module)
    bound_recurrent_spectral_norm(module, 50.0, iterations)
    x = torch.randn(6, 2, 3)
    a, b = module(x)[0], plain(x)[0]
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    raw = module.parametrizations.weight_hh_l0.original
    assert torch.equal(raw.grad, plain.weight_hh_l0.grad) and torch.equal(raw, plain.weight_hh_l0)


@over_torchs
def test_the_bound_holds_for_the_weight_that_is_used(kind):
    make, gates = TORCHS[kind]
    module = bound_recurrent_spectral_norm(make(3, 6), 0.8)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(50):
        output, _ = module(torch.randn(5, 4, 3))
        optimizer.zero_grad()
        (output - 0.9).square().sum().backward()
        optimizer.step()
    raw = of_blocks(module.parametrizations.weight_hh_l0.original, gates)
    assert raw.max() > 0.9  # the bound is needed
    norms = recurrent_spectral_norms(module)["weight_hh_l0"]
    assert norms.max() <= 0.8 * (1 + 1e-5)
    twin = make(3, 6)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(getattr(module, name))
    x = torch.randn(5, 4, 3)
    assert torch.equal(twin(x)[0], module(x)[0])
    other = bound_recurrent_spectral_norm(make(3, 6), 0.8)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x)[0], module(x)[0])
    assert torch.equal(copy.deepcopy(module)(x)[0], module(x)[0])
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert torch.equal(twin(x)[0], module(x)[0])


def test_gradient_of_the_bounded_weight():
    raw = torch.randn(6, 4, dtype=torch.float64) * 3
    raw[:3] *= 0.01
    bound = SpectralNormBound(1.0, num_blocks=2)
    assert torch.autograd.gradcheck(bound, raw.requires_grad_())
    assert repr(bound) == "SpectralNormBound(max_norm=1.0, num_blocks=2, n_power_iterations=None)"


def test_on_any_layer_and_compiled():
    layer = nn.Conv2d(3, 4, 3)
    nn.init.normal_(layer.weight, std=5.0)
    parametrize.register_parametrization(layer, "weight", SpectralNormBound(2.0, n_power_iterations=50))
    assert of_blocks(layer.weight, 1) == pytest.approx(2.0, rel=1e-3)
    layer.weight = torch.zeros(4, 3, 3, 3)
    assert torch.equal(layer.weight, torch.zeros(4, 3, 3, 3))
    torch._dynamo.reset()
    bound, weight = SpectralNormBound(1.0, 2, 5), torch.randn(8, 4) * 3
    compiled = torch.compile(bound, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight), bound(weight))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda w: spectral_norms(w, 3),
            ValueError,
            "num_blocks must divide the 8 rows of the weight, got 3",
        ),
        (lambda w: spectral_norms(w, 0), ValueError, "num_blocks must be at least 1, got 0"),
        (
            lambda w: spectral_norms(w[0]),
            TypeError,
            r"two dimensions or more, got torch.float32 of shape \(4,\)",
        ),
        (lambda w: spectral_norms(w.long()), TypeError, "must be a floating tensor"),
        (lambda w: spectral_norms([w]), TypeError, "got list"),
        (lambda w: spectral_norms(w, 1, 0), ValueError, "n_power_iterations must be at least 1, got 0"),
        (lambda w: clamp_spectral_norm_(w, 0.0), ValueError, "max_norm must be finite and above 0, got 0.0"),
        (
            lambda w: clamp_spectral_norm_(w, math.nan),
            ValueError,
            "max_norm must be finite and above 0, got nan",
        ),
        (lambda w: SpectralNormBound("1"), TypeError, "max_norm must be a number, got str"),
        (lambda w: SpectralNormBound(1.0, n_power_iterations=0), ValueError, "at least 1, got 0"),
    ],
)
def test_bad_input(call, error, message):
    weight = torch.randn(8, 4) * 10
    before = weight.clone()
    with pytest.raises(error, match=message):
        call(weight)
    assert torch.equal(weight, before)
