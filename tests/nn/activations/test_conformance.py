"""Every activation keeps one contract: a table, and one suite over it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.init import follow, initialise
from steadygrad.init.gain import forward_gain, gated_gain
from steadygrad.nn.activations import (
    CReLU,
    GroupSort,
    MaxMin,
    Maxout,
    SquaredReLU,
    SwiGLU,
    crelu,
    group_sort,
    max_min,
    maxout,
    squared_relu,
    swiglu,
)


def _silu(a: float) -> float:
    return a / (1 + math.exp(-a)) if a > -700 else 0.0


def _in_groups(row: list[float], size: int) -> list[list[float]]:
    return [row[i : i + size] for i in range(0, len(row), size)]


def _swiglu(row: list[float], limit: float = math.inf) -> list[float]:
    half = len(row) // 2
    return [
        _silu(min(a, limit)) * max(-limit, min(b, limit)) for a, b in zip(row[:half], row[half:], strict=True)
    ]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[int], nn.Module]  # from the dimension it works on
    function: Callable[[torch.Tensor, int], torch.Tensor]
    twin: Callable[[list[float]], list[float]]  # on one row of features
    label: str  # what init.follow calls it
    gain: float  # what initialise takes before it
    width: int = 12  # features it takes
    isometric: bool = False


ACTIVATIONS = (
    Case(
        "squared_relu",
        lambda dim: SquaredReLU(),
        lambda x, dim: squared_relu(x),
        lambda row: [max(v, 0.0) ** 2 for v in row],
        "squared_relu",
        forward_gain("squared_relu"),
    ),
    Case(
        "crelu",
        CReLU,
        crelu,
        lambda row: [max(v, 0.0) for v in row] + [max(-v, 0.0) for v in row],
        "relu",
        math.sqrt(2),
        isometric=True,
    ),
    Case("swiglu", SwiGLU, swiglu, _swiglu, "silu", gated_gain("silu")),
    Case(
        "swiglu_limit",
        lambda dim: SwiGLU(dim, limit=3.5),
        lambda x, dim: swiglu(x, dim, limit=3.5),
        lambda row: _swiglu(row, 3.5),
        "silu",
        gated_gain("silu"),
    ),
    Case(
        "maxmin",
        MaxMin,
        max_min,
        lambda row: [v for pair in _in_groups(row, 2) for v in (max(pair), min(pair))],
        "identity",
        1.0,
        isometric=True,
    ),
    Case(
        "group_sort",
        lambda dim: GroupSort(4, dim=dim),
        lambda x, dim: group_sort(x, 4, dim=dim),
        lambda row: [v for group in _in_groups(row, 4) for v in sorted(group, reverse=True)],
        "identity",
        1.0,
        isometric=True,
    ),
    Case(
        "maxout",
        lambda dim: Maxout(2, dim=dim),
        lambda x, dim: maxout(x, 2, dim=dim),
        lambda row: [max(pair) for pair in _in_groups(row, 2)],
        "identity",
        1.0,
    ),
)
over = pytest.mark.parametrize("case", ACTIVATIONS, ids=lambda c: c.name)
over_isometric = pytest.mark.parametrize(
    "case", [c for c in ACTIVATIONS if c.isometric], ids=lambda c: c.name
)


def sample(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def twin(case: Case, x: torch.Tensor) -> np.ndarray:
    rows = x.double().reshape(-1, x.shape[-1]).tolist()
    return np.array([case.twin(row) for row in rows]).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
    ids=str,
)
@over
def test_agrees_with_the_twin(case, dtype, rtol):
    x = sample(5, 3, case.width, dtype=dtype)
    y = case.make(-1)(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.double().numpy(), twin(case, x), rtol=rtol, atol=1e-13)


@over
def test_any_dimension(case):
    x = sample(2, case.width, 3, 4)
    for dim, back in ((1, 1), (-3, 1)):
        y = case.make(dim)(x)
        assert torch.equal(y.movedim(back, -1), case.make(-1)(x.movedim(1, -1)))
        assert torch.equal(y, case.function(x, dim))
    first = sample(case.width)
    assert torch.equal(case.make(0)(first), case.make(-1)(first))


@over
def test_gradcheck(case):
    x = sample(3, case.width).requires_grad_()
    module = case.make(-1)
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x,))


@over_isometric
def test_keeps_the_norm_forward_and_backward(case):
    x = sample(50, case.width)
    x[:10] = x[:10].round()  # with ties: they too must lead each gradient to one place
    x.requires_grad_()
    y = case.make(-1)(x)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0.0)
    above = sample(*y.shape)
    (below,) = torch.autograd.grad(y, x, above)
    if case.name == "crelu":  # of two gradients the one that belongs to the sign passes
        passed = torch.where(y != 0, above, 0.0)
        torch.testing.assert_close(below.norm(dim=-1), passed.norm(dim=-1), rtol=1e-12, atol=0.0)
    else:
        torch.testing.assert_close(below.norm(dim=-1), above.norm(dim=-1), rtol=1e-12, atol=0.0)
        assert torch.equal(y.sort(-1).values, x.sort(-1).values)


@over
def test_nan_passes_and_stays_with_its_row(case):
    x = sample(4, case.width)
    x[1, 0] = math.nan
    x.requires_grad_()
    y = case.make(-1)(x)
    assert y[1].isnan().any() and not y[[0, 2, 3]].isnan().any()
    assert not y[1].isnan().all()  # nor does it spread to the whole row


@over
def test_zero_and_infinity(case):
    module = case.make(-1)
    zeros = module(torch.zeros(2, case.width))
    assert torch.equal(zeros, torch.zeros_like(zeros))
    x = torch.ones(1, case.width)
    x[0, 0] = math.inf
    y = module(x)
    assert not y.isnan().any()
    if case.name == "swiglu_limit":
        assert y[0, 0].item() == pytest.approx(_silu(3.5))
    else:
        assert y[0, 0] == math.inf
    x[0, 0] = -math.inf
    y = module(x)
    assert y[0, 0].isnan() == case.name.startswith("swiglu")
    assert not y[0, 1:].isnan().any()


@over
def test_empty(case):
    module = case.make(-1)
    width = module(torch.zeros(1, case.width)).shape[-1]
    assert module(torch.zeros(0, case.width)).shape == (0, width)
    assert module(torch.zeros(3, 0)).shape == (3, 0)


@over
def test_copies_and_text(case):
    module, x = case.make(-1), sample(2, case.width)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x)) and repr(other) == repr(module)
    assert module.state_dict() == {}
    if case.name != "squared_relu":
        assert "dim=-1" in repr(module)


@over
def test_input_is_left_alone(case):
    x = sample(2, case.width)
    before = x.clone()
    case.make(-1)(x)
    assert torch.equal(x, before)


@over
def test_compiles_without_a_graph_break(case):
    torch._dynamo.reset()
    module = case.make(-1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    a, b = sample(3, case.width).requires_grad_(), sample(3, case.width).requires_grad_()
    module(a).square().sum().backward()
    compiled(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@over
def test_autocast_and_vmap(case):
    module, x = case.make(-1), sample(3, case.width, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), module(x.clone()))
    torch.testing.assert_close(torch.vmap(module)(x), module(x))


@over
def test_initialise_takes_the_gain_of_what_follows(case):
    net = nn.Sequential(nn.Linear(64, case.width), case.make(-1), nn.LazyLinear(5))
    x = sample(4, 64, dtype=torch.float32)
    net(x)
    layer = follow(net, x)["0.weight"]
    assert (layer.activation, layer.gated) == (case.label, case.name.startswith("swiglu"))
    row = initialise(net, x).rows[0]
    assert row.weight == "0.weight" and row.gain == pytest.approx(case.gain)
    assert net[0].weight.std().item() == pytest.approx(case.gain / 8, rel=0.1)


def test_group_sort_of_two_is_maxmin():
    x = sample(7, 12)
    assert torch.equal(GroupSort(2)(x), MaxMin()(x))


def test_the_limit_bounds_what_overflows():
    x = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert SwiGLU()(x).isinf().all()
    assert SwiGLU(limit=7.0)(x).item() == pytest.approx(49.0, rel=1e-2)
    x = torch.tensor([[1e4, -1e4]], requires_grad=True)
    SwiGLU(limit=7.0)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 2))


def test_a_limit_far_away_changes_nothing():
    x = sample(9, 12)
    assert torch.equal(SwiGLU(limit=1e3)(x), SwiGLU()(x))


def test_torchs_glu_gates_with_the_second_half():
    x = sample(3, 8)
    a, b = x.chunk(2, -1)
    turned = torch.cat((b, a), -1)
    torch.testing.assert_close(nn.functional.glu(turned), b * torch.sigmoid(a))
    torch.testing.assert_close(SwiGLU()(x), nn.functional.glu(turned) * a)


def test_crelu_keeps_the_norm_with_weights_of_gain_sqrt_2_orthogonal_or_not():
    for draw in (nn.init.orthogonal_, lambda w, gain: nn.init.normal_(w, std=gain * w.shape[1] ** -0.5)):
        x = torch.randn(64, 256)
        weight = draw(torch.empty(256, 512), math.sqrt(2))
        y = crelu(x, -1) @ weight.T
        assert y.square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.25)


@pytest.mark.parametrize(
    "call",
    [
        lambda: SwiGLU(32, 64),
        lambda: Maxout(32, 64),
        lambda: GroupSort(32, 64),
        lambda: swiglu(torch.zeros(3, 4), -1, 7.0),
        lambda: maxout(torch.zeros(3, 4), 2, -1),
        lambda: group_sort(torch.zeros(3, 4), 2, -1),
    ],
)
def test_settings_do_not_pass_for_widths(call):
    with pytest.raises(TypeError, match="positional argument"):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SwiGLU()(torch.zeros(3, 5)), ValueError, r"multiple of 2, got shape \(3, 5\)"),
        (lambda: MaxMin(dim=1)(torch.zeros(3, 5)), ValueError, r"dimension 1 of x must be a multiple of 2"),
        (lambda: GroupSort(4)(torch.zeros(3, 6)), ValueError, "multiple of 4"),
        (lambda: Maxout(4)(torch.zeros(3, 6)), ValueError, "multiple of 4"),
        (lambda: MaxMin(dim=2)(torch.zeros(3, 6)), ValueError, "no dimension 2: its shape is"),
        (lambda: CReLU(dim=1)(torch.zeros(3)), ValueError, "no dimension 1"),
        (
            lambda: SwiGLU()(torch.zeros(3, 4, dtype=torch.long)),
            TypeError,
            "floating tensor, got torch.int64",
        ),
        (lambda: SwiGLU(limit=0.0), ValueError, "limit must be a positive finite number or None, got 0.0"),
        (lambda: SwiGLU(limit=math.inf), ValueError, "got inf"),
        (lambda: swiglu(torch.zeros(4), limit=-1.0), ValueError, "limit must be a positive finite number"),
        (lambda: SwiGLU(dim="1"), TypeError, "dim must be an int, got str"),
        (lambda: GroupSort(1), ValueError, "group_size must be at least 2, got 1"),
        (lambda: group_sort(torch.zeros(4), 0), ValueError, "group_size must be at least 2, got 0"),
        (lambda: maxout(torch.zeros(4), 0), ValueError, "group_size must be at least 2, got 0"),
        (lambda: Maxout(2.0), TypeError, "group_size must be a whole number, got float"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
