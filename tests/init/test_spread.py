"""What a finite width adds to the depth limits, against random nets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.init import depth_limits, initialise, moments
from steadygrad.init._spread import _noises
from steadygrad.init.depth import _band, _first_q, _walk
from steadygrad.init.gain import ACTIVATIONS, init_gain

HALF = torch.finfo(torch.float16)


def apply(name: str, x: Tensor) -> Tensor:
    if name in ("swiglu", "geglu"):
        a, b = x.chunk(2, 1)
        return (F.silu if name == "swiglu" else F.gelu)(a) * b
    if name == "maxmin":
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack([pairs.amax(2), pairs.amin(2)], 2).flatten(1, 2)
    return ACTIVATIONS[name](x)


def nets(name: str, depth: int, width: int, count: int, gain: float | None = None) -> tuple[Tensor, Tensor]:
    """Logarithms of the variance by depth, and of the squared gradient norm at the end, of random plain nets.

    One input of each, drawn anew; shapes (depth, nets) and (nets,).
    """
    generator = torch.Generator().manual_seed(0)
    gain = init_gain(name) if gain is None else gain
    rows = 2 * width if name in ("swiglu", "geglu") else width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    def layer(x: Tensor) -> Tensor:
        return normal(count, rows, width) @ x * (gain / math.sqrt(width))

    x = first = layer(normal(count, width, 1)).requires_grad_()
    variances = []
    for _ in range(depth):
        x = layer(apply(name, x))
        variances.append(x.detach().square().mean((1, 2)).log())
    above = normal(*x.shape)
    (below,) = torch.autograd.grad(x, first, above)
    gradient = below.square().sum((1, 2)) / above.square().sum((1, 2))
    return torch.stack(variances), gradient.log()


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("relu", 20), ("tanh", 20), ("selu", 20), ("gelu", 20), ("silu", 20), ("mish", 20), ("sigmoid", 8),
        ("maxmin", 20), ("squared_relu", 3), ("swiglu", 3), ("geglu", 3),
    ],
)  # fmt: skip
def test_nine_nets_of_ten_lie_in_the_band(name, depth):
    width, gain = 64, init_gain(name)
    walk = _walk(name, gain, 0.0, _first_q(gain, 0.0, None), depth)
    band = _band(name, gain, 0.0, walk, width)
    variance, gradient = nets(name, depth, width, 100)
    for values, low, high in (
        (variance[-1], band.variance_low[-1], band.variance_high[-1]),
        (gradient, band.gradient_low[-1], band.gradient_high[-1]),
    ):
        inside = ((values > low) & (values < high)).double().mean().item()
        assert inside > 0.8
        assert (
            0.65 < values.std().item() / ((high - low) / 4) < 1.5
        )  # and the band is no wider than it must be


@pytest.mark.parametrize("name", ["gelu", "mish", "squared_relu", "swiglu"])
def test_unstable_nets_go_up_or_down(name):
    width = 64
    limit = depth_limits(name, init_gain(name), width=width, factor=10.0).forward
    assert limit.fate == "unstable"
    variance, _ = nets(name, 2 * limit.depth, width, 100)
    start = 2 * math.log(init_gain(name))
    up, down = variance > start + 2 * math.log(10), variance < start - 2 * math.log(10)
    before = limit.depth - 2  # the limit is the first depth outside
    assert (up | down)[before].double().mean() < 0.25
    assert up[-1].double().mean() > 0.02 and down[-1].double().mean() > 0.05


@pytest.mark.parametrize(
    ("name", "factor", "gain"),
    [("silu", None, None), ("silu", 10.0, None), ("relu", None, 2.0), ("tanh", 10.0, 0.8)],
)
def test_nets_leave_where_the_limit_says(name, factor, gain):
    width, sigma_w = 256, init_gain(name) if gain is None else gain
    limit = depth_limits(name, sigma_w, dtype=torch.float16, width=width, factor=factor).forward
    assert limit.fate == ("vanishes" if name == "tanh" else "explodes")
    variance, _ = nets(name, limit.depth + 15, width, 7, sigma_w)
    start = 2 * math.log(sigma_w) if factor else 0.0
    edge = 2 * math.log(factor if factor else HALF.max)
    outside = variance < start - edge if name == "tanh" else variance > start + edge
    first = (~outside).long().cumprod(0).sum(0) + 1
    assert first.double().median().item() == pytest.approx(limit.depth, abs=max(2.0, 0.1 * limit.depth))


def test_nets_that_hold():
    for name in ("relu", "tanh", "selu"):
        limits = depth_limits(name, init_gain(name), dtype=torch.float16, width=64, max_depth=40)
        assert {x.fate for x in limits} == {"holds"}
        variance, gradient = nets(name, 40, 64, 30)
        for values in (variance[-1], gradient):
            assert bool(((values < 2 * math.log(HALF.max)) & (values > 2 * math.log(HALF.tiny))).all())


def test_a_model_from_initialise_grows_as_the_limit_says():
    """Fed with variance 1, 50 SiLU layers of He's weights grow 5e3 times: the walk starts beside its fixed point."""
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(50) for m in (nn.Linear(128, 128), nn.SiLU())])
    x = torch.randn(32, 128, requires_grad=True)
    initialise(model, x, "he_normal")
    y = model(x)
    (below,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert 300 < y.square().mean().sqrt().item() < 1e5
    forward, backward = depth_limits("silu", init_gain("silu"), width=128, factor=300.0)
    assert forward.depth < 50 and backward.depth < 50 and forward.fate != "holds" != backward.fate
    assert below.norm().item() > 300 * math.sqrt(x.numel())


def test_noise_has_known_values():
    assert _noises("relu", 3.0) == pytest.approx((5.0, 5.0))
    assert _noises("identity", 0.1) == pytest.approx((2.0, 2.0))
    assert _noises(nn.ReLU(), 1.0) == pytest.approx((5.0, 5.0))
    assert _noises("squared_relu", 1.0) == pytest.approx((52.5 / 2.25 - 1, 3 * 24 / 4 - 1))
    assert _noises("maxmin", 1.0) == _noises("crelu", 1.0) == (2.0, 2.0)
    x = torch.randn(2, 2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second, slope = F.silu(x[0]) * x[1], torch.autograd.functional.jvp(F.silu, x[0], torch.ones_like(x[0]))[1]
    through = 3 * ((slope * x[1]).square() + F.silu(x[0]).square()).square().mean()
    signal = second.pow(4).mean() / moments("swiglu").second ** 2 - 1
    gradient = through / moments("swiglu").slope ** 2 - 1
    assert _noises("swiglu", 1.0) == pytest.approx((signal.item(), gradient.item()), rel=0.05)


def test_the_infinite_width_has_no_noise():
    at = {"q": 1.0, "factor": 10.0, "max_depth": 200}
    gain = init_gain("silu")
    assert {x.fate for x in depth_limits("silu", gain, width=None, **at)} != {"unstable"}
    depths = [depth_limits("silu", gain, width=n, **at).forward for n in (64, 256, 10**6)]
    assert {x.fate for x in depths} == {"unstable"}
    assert depths[0].depth < depths[1].depth < depths[2].depth
    # slope^depth: each 16th of the noise holds for as many layers again as the slope needs to grow 4 times
    more = math.log(math.sqrt(10**6 / 256)) / math.log(1.1726)
    assert depths[2].depth - depths[1].depth == pytest.approx(more, abs=3)


def test_the_band_at_a_critical_point_with_biases():
    """Half-stable: the signal is held from above only, and the gradient strays with it."""
    sigma_w, sigma_b, q, depth, width, count = 1.40821, 0.41582, 3.5616, 40, 64, 100
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    x = first = (math.sqrt(q) * normal(count, width, 1)).requires_grad_()
    for _ in range(depth):
        weight, bias = (
            normal(count, width, width) * sigma_w / math.sqrt(width),
            sigma_b * normal(count, width, 1),
        )
        x = weight @ F.gelu(x) + bias
    above = normal(*x.shape)
    (below,) = torch.autograd.grad(x, first, above)
    walk = _walk("gelu", sigma_w, sigma_b, q, depth)
    band = _band("gelu", sigma_w, sigma_b, walk, width)
    signal = x.detach().square().mean((1, 2)).log()
    gradient = (below.square().sum((1, 2)) / above.square().sum((1, 2))).log()
    for values, low, high in (
        (signal, band.variance_low[-1], band.variance_high[-1]),
        (gradient, band.gradient_low[-1], band.gradient_high[-1]),
    ):
        assert ((values > low) & (values < high)).double().mean().item() > 0.8
        assert 0.5 < values.std().item() / ((high - low) / 4) < 1.5


def test_a_function_and_a_bias():
    by_name = depth_limits("gelu", 1.5335, 0.1, factor=10.0, max_depth=60)
    assert depth_limits(nn.GELU(), 1.5335, 0.1, factor=10.0, max_depth=60) == by_name
    at_critical = {"sigma_w": 1.4082, "sigma_b": 0.4158, "q": 3.5616, "max_depth": 60}
    held = depth_limits("gelu", dtype=torch.float16, **at_critical)
    assert {x.fate for x in held} == {"holds"}


@pytest.mark.parametrize("function", [torch.sign, nn.Threshold(20.0, 0.0), lambda x: x * 0.0])
def test_functions_that_are_flat(function):
    limits = depth_limits(function, 1.0, 0.3, width=64, max_depth=5)
    assert str(limits.forward) == "holds" and str(limits.backward) == "vanishes at 1"


def test_far_from_its_fixed_point_chance_has_no_say():
    for dtype in (torch.float16, torch.float64):
        far = depth_limits("squared_relu", 1.0, q=50.0, dtype=dtype)
        assert far.forward.fate == far.backward.fate == "explodes"
