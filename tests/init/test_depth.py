"""Depth limits: closed forms, a real net in half precision, and the table."""

from __future__ import annotations

import math

import pytest
import torch

from steadygrad.init import depth_limits, gain_table
from steadygrad.init.critical import chi, variance_map
from steadygrad.init.depth import TABLE_ROWS, aligned, plain_drift
from steadygrad.init.gain import forward_gain, init_gain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma_w", [0.7, 1.1, 2.0, 3.0])
def test_relu_has_a_closed_form(sigma_w, dtype):
    info = torch.finfo(dtype)
    step = math.log(sigma_w**2 / 2) / 2  # of the rms, per layer
    edge = math.log(info.max if step > 0 else info.tiny)
    expected = math.floor(edge / step) + 1
    for limit in depth_limits("relu", sigma_w, dtype=dtype, q=1.0, max_depth=10_000):
        assert limit.depth == pytest.approx(expected, abs=1)
        assert limit.fate == ("explodes" if step > 0 else "vanishes")


def test_what_holds():
    for name, sigma_w in (("relu", math.sqrt(2)), ("tanh", 1.0), ("identity", 1.0), ("selu", 1.0)):
        assert depth_limits(name, sigma_w, max_depth=300).forward == (300, "holds"), name
    # tanh cannot explode forward; its gradient can
    chaotic = depth_limits("tanh", 3.0, dtype=torch.float16)
    assert chaotic.forward.fate == "holds" and chaotic.backward.fate == "explodes"
    assert depth_limits("tanh", 3.0, 0.5).backward.fate == "explodes"
    assert depth_limits("squared_relu", 1.0).forward.depth < 12  # doubly exponential


def test_a_real_net_overflows_where_the_theory_says():
    theory = depth_limits("relu", 4.0, dtype=torch.float16).forward
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    for depth in range(1, 40):
        x = (4.0 / 16) * torch.randn(256, 256, generator=generator) @ x.relu() if depth > 1 else x
        if x.square().mean().sqrt() > torch.finfo(torch.float16).max:
            break
    assert theory.fate == "explodes" and abs(depth - theory.depth) <= 2


@pytest.mark.parametrize("unit", ["swiglu", "maxmin"])
def test_a_real_net_of_units_goes_where_the_theory_says(unit):
    """Forward and backward, 16 samples each by itself, as a product squares the differences between them."""
    generator = torch.Generator().manual_seed(0)
    width, gain, samples = 512, init_gain(unit), 16

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = first = normal((2 if unit == "swiglu" else 1) * width, samples).requires_grad_()
    slope = torch.ones(samples, dtype=torch.float64)
    for _ in range(4):
        q = x.detach().square().mean(0)
        weight = normal(len(x), width) * gain / math.sqrt(width)
        if unit == "swiglu":
            a, b = x.chunk(2)
            x = weight @ (torch.nn.functional.silu(a) * b)
        else:
            pairs = x.unflatten(0, (width // 2, 2))
            x = weight @ torch.stack([pairs.amax(1), pairs.amin(1)], 1).flatten(0, 1)
        expected = torch.tensor([variance_map(unit, v, gain) for v in q.tolist()])
        assert (x.detach().square().mean(0) / expected).mean().item() == pytest.approx(1.0, abs=0.15)
        slope *= torch.tensor([chi(unit, gain, q=v) for v in q.tolist()])
    above = normal(*x.shape)
    (below,) = torch.autograd.grad(x, first, above)
    ratio = (below.square().sum(0) / above.square().sum(0) / slope).log().mean().item()
    assert ratio == pytest.approx(0.0, abs=0.3)
    limit = depth_limits(unit, gain, dtype=torch.float16).forward
    assert (limit.fate, limit.depth) == (("unstable", 6) if unit == "swiglu" else ("holds", 1000))


def test_every_activation_of_the_issue_has_gains_and_limits():
    names = ["gelu", "silu", "mish", "squared_relu", "swiglu", "maxmin"]
    assert set(names) <= set(TABLE_ROWS)
    table = gain_table(names, dtypes=[torch.float32, torch.float16], width=64, max_depth=200)
    for row in table.rows:
        assert row.forward > 0 and row.backward > 0 and row.init > 0 and row.slope_q > 0
        assert list(row.limits) == ["10 times", "float32", "float16"]
    fate = {row.activation: row.limits["float16"] for row in table.rows}
    for unit in ("swiglu", "squared_relu"):
        assert fate[unit].forward.fate == fate[unit].backward.fate == "unstable"
    assert fate["maxmin"].forward.fate == fate["maxmin"].backward.fate == "holds"
    assert str(gain_table([])).count("\n") == 4


def test_drift():
    assert plain_drift("selu", 1.0, 50)[0] < -1  # attracts
    assert plain_drift("gelu", forward_gain("gelu"), 18)[0] > math.log(10)  # repels
    assert plain_drift("tanh", 1.0, 50)[0] == 0.0
    relu = plain_drift("relu", math.sqrt(2), 500)
    assert abs(relu[0]) < 1e-3 and abs(relu[1]) < 1e-6
    assert plain_drift("sigmoid", 4.0, 50)[1] < -10


def test_table():
    table = gain_table(
        ["relu", "tanh", "swiglu", "maxmin", "squared_relu"],
        sigma_w=1.0,
        dtypes=[torch.float16],
        max_depth=60,
    )
    rows = {row.activation: row for row in table.rows}
    assert rows["relu"].torch_gain == pytest.approx(math.sqrt(2))
    assert rows["relu"].slope_q == pytest.approx(1.0)
    assert math.isnan(rows["squared_relu"].torch_gain) and rows["squared_relu"].critical is None
    assert rows["maxmin"].forward == rows["maxmin"].backward == 1.0
    assert rows["relu"].limits["float16"].forward.fate == "vanishes"
    text = str(table)
    assert "none" in text and "sigma_w 1," in text and "width 256" in text
    assert "  signal down 29" in text.replace("\n", "  ")  # 65504 and 6e-5 in steps of 2^(-1/2)
    assert "width infinite" in str(gain_table(["relu"], width=None, dtypes=[]))
    assert len({len(line) for line in text.splitlines()[:2]}) == 1
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.slow
def test_the_default_table_has_every_activation():
    table = gain_table(max_depth=100)
    assert [row.activation for row in table.rows] == list(TABLE_ROWS)
    assert set(table.rows[0].limits) == {"10 times", "float32", "float16"}
    fates = {row.activation: str(row.limits["10 times"].forward) for row in table.rows}
    assert (
        fates["silu"] == "explodes at 17"
        and fates["selu"] == "holds"
        and fates["swiglu"] == "unstable from 4"
    )
    assert max(map(len, str(table).splitlines())) < 150


def test_bad_input():
    with pytest.raises(TypeError, match="dtype must be a floating dtype"):
        depth_limits("relu", 1.0, dtype=torch.int32)
    with pytest.raises(ValueError, match="max_depth must be at least 1, got 0"):
        depth_limits("relu", 1.0, max_depth=0)
    with pytest.raises(ValueError, match="width must be at least 1, or None for infinite, got 0"):
        depth_limits("relu", 1.0, width=0)
    with pytest.raises(ValueError, match="factor must be above 1 and finite, got 1"):
        depth_limits("relu", 1.0, factor=1.0)
    with pytest.raises(ValueError, match="q must be a positive finite variance, got 0"):
        depth_limits("relu", 1.0, q=0.0)
    with pytest.raises(ValueError, match="sigma_w must be positive"):
        depth_limits("relu", -1.0)
    with pytest.raises(ValueError, match="unknown activation"):
        gain_table(["rleu"])


def test_alignment():
    assert aligned([("a", "b"), ("long", "1")]) == ["a     b", "----  -", "long  1"]
