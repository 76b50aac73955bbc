"""What is special to the residual connection: order of the operations, what it passes through, what it refuses."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from steadygrad.nn.residual import DropPath, GRUGate, LayerScale, Residual, SkipInit


class Note(nn.Module):
    """Adds its name to a list when it runs, and changes nothing."""

    def __init__(self, name, into):
        super().__init__()
        self.name, self.into = name, into

    def forward(self, x, *_):
        self.into.append(self.name)
        return x


def noted(into, placement, **options):
    block = Residual(
        Note("fn", into),
        4,
        placement=placement,
        norm=lambda n: Note("norm", into),
        scale=Note("scale", into),
        **options,
    )
    if block.dropout is not None:
        block.dropout = Note("dropout", into)
    if block.drop_path is not None:
        block.drop_path = Note("drop_path", into)
    return block


@pytest.mark.parametrize(
    ("placement", "order"),
    [
        ("pre", "norm fn dropout scale drop_path shortcut"),
        ("post", "fn dropout scale drop_path shortcut norm"),
        ("sandwich", "norm fn norm dropout scale drop_path shortcut"),
        (None, "fn dropout scale drop_path shortcut"),
    ],
)
def test_order_of_the_operations(placement, order):
    seen = []
    noted(seen, placement, dropout=0.5, drop_path=0.5, shortcut=Note("shortcut", seen))(torch.ones(2, 4))
    assert seen == order.split()


def test_gate_joins_skip_and_branch():
    gate = GRUGate(4)
    block = Residual(nn.Linear(4, 4), 4, gate=gate)
    x = torch.randn(3, 4)
    assert torch.equal(block(x), gate(x, block.fn(block.norm(x))))


def test_function_gets_further_arguments_and_its_tuple_comes_back():
    lstm = nn.LSTM(4, 4, batch_first=True)
    block, x = Residual(lstm, 4), torch.randn(2, 3, 4)
    state = (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    y, after = block(x, state)
    wanted, wanted_after = lstm(block.norm(x), state)
    assert torch.equal(y, x + wanted) and torch.equal(after[0], wanted_after[0])

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    block = Residual(attention, 4, placement=None)
    y, weights = block(x, x, value=x, need_weights=False)
    assert weights is None and torch.equal(y, x + attention(x, x, x, need_weights=False)[0])


def test_a_plain_function_will_do():
    x = torch.randn(2, 3)
    assert torch.equal(Residual(torch.sin, placement=None)(x), x + torch.sin(x))


def test_shortcut_maps_the_skip_where_shapes_differ():
    shortcut = nn.Conv2d(2, 4, 1, stride=2)
    block = Residual(nn.Conv2d(2, 4, 3, 2, 1), placement=None, shortcut=shortcut)
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(block(x), shortcut(x) + block.fn(x))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.RMSNorm, (4, 8)),
        (nn.BatchNorm1d, (4, 8)),
        (partial(nn.GroupNorm, 4), (4, 8, 5, 5)),
        (nn.BatchNorm2d, (4, 8, 5, 5)),
    ],
)
def test_any_norm_of_torch(norm, shape):
    block = Residual(nn.Identity(), 8, placement="pre", norm=norm)
    x = torch.randn(shape)
    torch.testing.assert_close(block(x), x + norm(8)(x))


def test_variance_of_a_deep_stream_with_the_scale_of_its_depth():
    """Branches at 1 / sqrt(2L) leave the variance below e; at 1 it is 2^L."""
    torch.manual_seed(0)
    L, width = 50, 256

    def last(scale):
        x = torch.randn(64, width)
        for _ in range(L):
            fn = nn.Linear(width, width, bias=False)
            nn.init.normal_(fn.weight, std=width**-0.5)
            x = Residual(fn, placement=None, scale=scale)(x)
        return x.var().item()

    assert 1.4 < last(1 / math.sqrt(2 * L)) < 2.0  # (1 + 1 / 2L)^L = 1.65
    assert last(1.0) > 1e13


@pytest.mark.parametrize("scale", [SkipInit(), LayerScale(8, init_value=0.0)])
def test_a_zero_scale_is_the_identity_and_learns(scale):
    block, x = Residual(nn.Linear(8, 8), placement=None, scale=scale), torch.randn(4, 8)
    y = block(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    (learned,) = scale.parameters()
    assert learned.grad.abs().max() > 0 and block.fn.weight.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("dim", "shape"), [(-1, (2, 5, 3)), (2, (2, 5, 3)), (1, (2, 3, 5, 4)), (-3, (2, 3, 5, 4))]
)
def test_layer_scale_on_any_dimension(dim, shape):
    layer = LayerScale(3, dim=dim)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(shape)
    out = layer(x)
    for channel in range(3):
        assert torch.equal(out.select(dim, channel), x.select(dim, channel) * (channel + 1))


def test_layer_scale_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match=r"3 channels in dimension -1, got shape \(2, 1\)"):
        LayerScale(3)(torch.ones(2, 1))
    with pytest.raises(ValueError, match="dimension 5"):
        LayerScale(3, dim=5)(torch.ones(2, 3))


def test_dropout_and_drop_path_only_in_training():
    block, x = Residual(nn.Identity(), placement=None, dropout=0.5, drop_path=0.5), torch.ones(200, 8)
    assert torch.equal(block.eval()(x), 2 * x)
    torch.manual_seed(0)
    y = block.train()(x)
    dropped = (y == 1).all(1)
    assert 60 < dropped.sum() < 140  # half the examples skip the branch
    assert set(y[~dropped].unique().tolist()) == {1.0, 5.0}  # the others get 0 or 1 / (0.5 * 0.5)


def test_is_made_in_the_dtype_that_is_asked_for():
    block = Residual(nn.Identity(), 4, placement="sandwich", dtype=torch.float64)
    assert {p.dtype for p in block.parameters()} == {torch.float64}


def test_says_what_it_is():
    text = repr(Residual(nn.Identity(), 4, placement="post", scale=0.5, skip_scale=2.0, drop_path=0.1))
    assert "placement='post', scale=0.5, skip_scale=2" in text and "DropPath(p=0.1)" in text
    assert "batch_dim=1" in repr(DropPath(0.1, batch_dim=1))
    assert repr(LayerScale(4, dim=1)) == "LayerScale(4, init_value=1e-05, dim=1)"
    assert repr(SkipInit()) == "SkipInit(init_value=0.0)"


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (TypeError, "fn must be", {"fn": 3}),
        (ValueError, "placement must be .* got 'middle'", {"placement": "middle"}),
        (ValueError, "placement 'pre' needs normalized_shape", {"placement": "pre"}),
        (
            TypeError,
            "norm must be .* got LayerNorm",
            {"placement": "pre", "normalized_shape": 4, "norm": nn.LayerNorm(4)},
        ),
        (ValueError, "dropout must be between 0 and 1, got 1.5", {"dropout": 1.5}),
        (ValueError, "drop_path must be between 0 and 1, got -0.1", {"drop_path": -0.1}),
        (ValueError, "scale must be finite, got nan", {"scale": math.nan}),
        (TypeError, "scale must be a number, got str", {"scale": "rezero"}),
        (ValueError, "skip_scale must be finite, got inf", {"skip_scale": math.inf}),
        (ValueError, "skip_scale 2.0 has no place beside a gate", {"skip_scale": 2.0, "gate": GRUGate(4)}),
    ],
)
def test_refuses(error, words, options):
    with pytest.raises(error, match=words):
        Residual(**{"fn": nn.Identity(), "placement": None} | options)


def test_refuses_a_sum_that_would_broadcast():
    with pytest.raises(ValueError, match=r"branch has shape \(2, 1\), the skip \(2, 4\): give a shortcut="):
        Residual(nn.Linear(4, 1), placement=None)(torch.ones(2, 4))
