"""Gains: closed forms, published critical points, torch's own values, and what is not an activation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.init._quadrature import quadrature
from steadygrad.init._units import UNITS
from steadygrad.init.critical import chi, critical_point, fixed_point, variance_map
from steadygrad.init.gain import (
    ACTIVATIONS,
    as_function,
    backward_gain,
    forward_gain,
    gated_gain,
    init_gain,
    moments,
)

VARIANCES = [1e-8, 0.01, 1.0, 4.0, 100.0, 1e6]


def trapezoid(f, q: float) -> tuple[float, float]:
    """The slow twin: the plain trapezoid rule with a central difference, exact to many digits for smooth functions."""
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    x = z * math.sqrt(q)
    slope = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5
    return (weight * f(x) ** 2).sum().item(), (weight * slope**2).sum().item()


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "mish", "softplus"])
@pytest.mark.parametrize("q", [0.01, 0.5, 1.0, 3.0, 50.0])
def test_smooth_moments_equal_the_trapezoid_rule(name, q):
    second, slope = trapezoid(ACTIVATIONS[name], q)
    m = moments(name, q)
    assert m.second == pytest.approx(second, rel=1e-6)
    assert m.slope == pytest.approx(slope, rel=1e-6)


def normal_cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def hardtanh_second(q: float) -> float:
    a = 1 / math.sqrt(q)
    inside = math.erf(a / math.sqrt(2))
    return q * (inside - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)) + (1 - inside)


@pytest.mark.parametrize("q", VARIANCES)
def test_closed_forms(q):
    cases = {
        "identity": (q, 1.0),
        "relu": (q / 2, 0.5),
        "squared_relu": (1.5 * q * q, 2 * q),
        "hardtanh": (hardtanh_second(q), math.erf(1 / math.sqrt(2 * q))),
    }
    for name, (second, slope) in cases.items():
        m = moments(name, q)
        assert m.second == pytest.approx(second, rel=1e-8), name
        assert m.slope == pytest.approx(slope, rel=1e-8), name
    leaky = moments(nn.LeakyReLU(0.3), q)
    assert leaky.second == pytest.approx(q * (1 + 0.09) / 2, rel=1e-9)
    assert leaky.slope == pytest.approx((1 + 0.09) / 2, rel=1e-9)


@pytest.mark.parametrize("bend", [0.3, -1.7, 0.001, 2.9])
def test_a_kink_anywhere_is_resolved(bend):
    m = moments(lambda x: F.relu(x - bend))
    tail = 1 - normal_cdf(bend)
    density = math.exp(-bend * bend / 2) / math.sqrt(2 * math.pi)
    assert m.slope == pytest.approx(tail, rel=1e-6)
    assert m.second == pytest.approx((1 + bend * bend) * tail - bend * density, rel=1e-6)


def test_known_gains():
    assert forward_gain("relu") == pytest.approx(math.sqrt(2), rel=1e-9)  # He
    assert backward_gain("relu") == pytest.approx(math.sqrt(2), rel=1e-9)
    assert forward_gain("selu") == pytest.approx(1.0, rel=1e-9)  # SELU's constants are made for LeCun
    assert moments("selu").mean == pytest.approx(0.0, abs=1e-9)
    assert fixed_point("selu", 1.0, q=2.0) == pytest.approx(1.0, rel=1e-9)
    assert forward_gain("squared_relu") == pytest.approx(math.sqrt(2 / 3), rel=1e-9)


def test_where_torch_means_the_same():
    for name, ours in (("linear", "identity"), ("relu", "relu"), ("leaky_relu", "leaky_relu")):
        assert forward_gain(ours) == pytest.approx(nn.init.calculate_gain(name), rel=1e-9)
    assert forward_gain(nn.LeakyReLU(0.2)) == pytest.approx(
        nn.init.calculate_gain("leaky_relu", 0.2), rel=1e-9
    )


def test_where_torch_means_something_else():
    assert nn.init.calculate_gain("tanh") == pytest.approx(5 / 3)
    assert forward_gain("tanh") == pytest.approx(1.5925, abs=1e-4)
    assert init_gain("tanh") == pytest.approx(1.0)
    # torch's 5/3 lies in the chaotic phase: the gradient norm grows 1.1 times per layer, 1.9e8 times in 200
    assert math.sqrt(chi("tanh", 5 / 3)) == pytest.approx(1.0999, abs=1e-3)
    assert nn.init.calculate_gain("sigmoid") == 1 and init_gain("sigmoid") == pytest.approx(4.0)
    assert nn.init.calculate_gain("selu") == 0.75 and init_gain("selu") == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["silu", "gelu", "sigmoid"])
def test_gated_gain_gives_unit_output(name):
    g = gated_gain(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a, b = g * torch.randn(2, 2_000_000)
    assert (ACTIVATIONS[name](a) * b).square().mean().item() == pytest.approx(1.0, rel=0.01)


# unit: how it is written on one tensor, whose last dimension holds its pre-activations side by side
WRITTEN = {
    "swiglu": lambda x: F.silu(x[..., 0]) * x[..., 1],
    "geglu": lambda x: F.gelu(x[..., 0]) * x[..., 1],
    "glu": lambda x: torch.sigmoid(x[..., 0]) * x[..., 1],
    "maxmin": lambda x: torch.stack([x.amax(-1), x.amin(-1)], -1),
    "crelu": lambda x: torch.cat([F.relu(x), F.relu(-x)], -1),
    "maxout": lambda x: x.amax(-1),
}


@pytest.mark.parametrize("q", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("unit", UNITS)
def test_units_have_the_moments_that_a_sample_has(unit, q):
    """The squared norm forward and, by autograd, of a random gradient on its way back."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400_000, 2, generator=generator, dtype=torch.float64).mul(math.sqrt(q)).requires_grad_()
    y = WRITTEN[unit](x)
    above = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (below,) = torch.autograd.grad(y, x, above)
    m = moments(unit, q)
    assert m.second == pytest.approx(y.detach().square().mean().item(), rel=0.02)
    assert m.slope == pytest.approx((below.square().sum() / above.square().sum()).item(), rel=0.02)
    assert m.mean == pytest.approx(y.mean().item(), abs=0.01 * math.sqrt(q))


def test_gains_of_units():
    assert forward_gain("maxmin") == backward_gain("maxmin") == init_gain("maxmin") == 1.0
    assert critical_point("maxmin")[:2] == pytest.approx((1.0, 0.0))
    assert [f("crelu") for f in (forward_gain, backward_gain)] == pytest.approx([math.sqrt(2)] * 2)
    assert init_gain("swiglu") == gated_gain("silu") and init_gain("geglu") == gated_gain("gelu")
    assert forward_gain("swiglu") == pytest.approx(forward_gain("silu"))  # E[(f b)^2] = q E[f^2]
    for unit in ("swiglu", "geglu"):
        g = gated_gain(UNITS[unit][0])
        assert variance_map(unit, g * g, g) == pytest.approx(g * g)  # unit input gives unit output
        point = critical_point(unit)
        assert variance_map(unit, point.q, point.sigma_w, point.sigma_b) == pytest.approx(point.q)
        assert chi(unit, point.sigma_w, point.sigma_b, q=point.q) == pytest.approx(1.0)
    with pytest.raises(TypeError, match="'maxmin' is not elementwise"):
        as_function("maxmin")


def test_modules_and_functions():
    prelu = nn.PReLU(init=0.3)
    assert moments(prelu).second == pytest.approx((1 + 0.09) / 2)
    with torch.no_grad():
        prelu.weight.fill_(0.5)
    assert moments(prelu).second == pytest.approx((1 + 0.25) / 2)  # a learned slope is not cached
    assert prelu.weight.dtype == torch.float32
    mean_slope = (1 / 8 + 1 / 3) / 2
    assert moments(nn.RReLU()).second == pytest.approx((1 + mean_slope**2) / 2)
    assert moments(nn.ReLU(inplace=True)) == moments(torch.relu)
    assert moments(lambda x: x.relu_()) == moments("relu")
    assert moments(nn.Hardtanh(-2, 2)) != moments(nn.Hardtanh())
    assert moments(torch.nn.Threshold(0.1, 20.0)).slope == pytest.approx(1 - normal_cdf(0.1), rel=1e-6)


def test_names_are_cached_and_nothing_random_is_used(monkeypatch):
    moments("gelu", 1.2345)
    monkeypatch.setitem(ACTIVATIONS, "gelu", None)
    assert moments("gelu", 1.2345).second > 0
    before = torch.get_rng_state()
    moments(nn.RReLU(), 0.7)
    critical_point(nn.SiLU())
    assert torch.equal(before, torch.get_rng_state())


def test_works_whatever_torch_is_set_to():
    expected = quadrature(F.gelu, 1.0)
    with torch.inference_mode():
        assert quadrature(F.gelu, 1.0) == expected
    with torch.no_grad():
        assert quadrature(F.gelu, 1.0) == expected
    torch.set_default_dtype(torch.float16)
    try:
        assert quadrature(F.gelu, 1.0) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan, math.inf, "1"])
def test_bad_variance(q):
    with pytest.raises(ValueError, match="q must be a positive finite variance"):
        moments("relu", q)


def test_bad_activation():
    with pytest.raises(ValueError, match="unknown activation 'rleu': use one of identity, tanh"):
        moments("rleu")
    with pytest.raises(TypeError, match="must be a name, a module or a function, got int"):
        moments(3)
    for not_elementwise in (nn.Softmax(-1), nn.GLU(), lambda x: x.sum(), lambda x: x - x.mean()):
        with pytest.raises(TypeError, match="not elementwise"):
            moments(not_elementwise)
    with pytest.raises(ValueError, match="not finite at"):
        moments(torch.exp, 1e10)
    with pytest.raises(ValueError, match="0 everywhere"):
        forward_gain(lambda x: F.relu(x - 100))
    with pytest.raises(ValueError, match="flat at variance"):
        backward_gain(lambda x: x * 0 + 1)
