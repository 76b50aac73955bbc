"""What is special to the fully connected, convolutional and recurrent builders."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from steadygrad.init import initialise
from steadygrad.nn.models import (
    dense_mlp,
    densenet,
    highway_mlp,
    mlp,
    residual_lstm,
    residual_mlp,
    residual_rnn,
    resnet,
    stacked_recurrent,
)
from steadygrad.nn.residual import DenseBlock, Highway, LayerScale, Residual, SkipInit


def of(kind, net):
    return [m for m in net.modules() if isinstance(m, kind)]


def gradient_ratio(net, x):
    """Norm of the gradient at the first weight over that at the last but one."""
    net(x).square().mean().backward()
    norms = [p.grad.norm().item() for p in net.parameters() if p.dim() >= 2]
    return norms[0] / max(norms[-2], 1e-300)


def test_mlp_is_its_layers_in_order():
    net = mlp(4, 2, width=8, depth=2, activation=nn.Tanh, norm=nn.LayerNorm, dropout=0.1)
    kinds = [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Dropout] * 2 + [nn.Linear]
    assert [type(m) for m in net] == kinds
    assert not any(m.bias is not None for m in of(nn.Linear, mlp(4, 2, width=8, depth=2, bias=False)))


def test_depth_kills_the_plain_net_and_not_the_residual_one():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    plain = gradient_ratio(mlp(8, 2, width=32, depth=100, activation=nn.Tanh), x)
    residual = gradient_ratio(residual_mlp(8, 2, width=32, depth=50, activation=nn.Tanh), x)
    assert plain < 1e-6 and 1e-2 < residual < 1e2


def test_residual_mlp_passes_its_settings_on():
    net = residual_mlp(
        4, 2, width=8, depth=4, hidden=16, scale=0.5, skip_scale=2.0, placement="post", dropout=0.1, drop_path=0.4
    )  # fmt: skip
    blocks = of(Residual, net)
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(b.scale == 0.5 and b.skip_scale == 2.0 and b.dropout.p == 0.1 for b in blocks)
    assert all(b.post_norm is not None and b.norm is None for b in blocks)
    assert {tuple(m.weight.shape) for b in blocks for m in of(nn.Linear, b)} == {(16, 8), (8, 16)}


@pytest.mark.parametrize(
    ("placement", "norms"), [("pre", 3 + 1), ("sandwich", 2 * 3 + 1), ("post", 3), (None, 0)]
)
def test_norms_stand_where_the_placement_says(placement, norms):
    assert len(of(nn.LayerNorm, residual_mlp(4, 2, width=8, depth=3, placement=placement))) == norms


def test_every_block_has_a_scale_of_its_own():
    for scale, kind, value in (
        (SkipInit, SkipInit, 0.0),
        (partial(SkipInit, init_value=0.5), SkipInit, 0.5),
        (partial(LayerScale, init_value=0.25), LayerScale, 0.25),
    ):
        for net in (
            residual_mlp(4, 2, width=8, depth=3, scale=scale),
            resnet(1, 2, depth=3, width=4, scale=scale),
            residual_rnn(4, 2, hidden_size=8, depth=3, scale=scale),
        ):
            scales = of(kind, net)
            assert len(scales) == 3 and len({id(s) for s in scales}) == 3
            assert all((p == value).all() for s in scales for p in s.parameters())
    assert [s.num_channels for s in of(LayerScale, resnet(1, 2, depth=3, width=4, scale=LayerScale))] == [
        4,
        8,
        16,
    ]


def test_highway_gates_all_start_at_the_bias():
    layers = of(Highway, highway_mlp(4, 2, width=8, depth=5, gate_bias=-3.0))
    assert len(layers) == 5 and all((layer.gate.bias == -3.0).all() for layer in layers)


def test_initialise_leaves_the_gate_biases_of_a_highway_net():
    net = highway_mlp(4, 2, width=8, depth=3, gate_bias=-2.0)
    initialise(net, torch.randn(16, 4))
    assert all((layer.gate.bias == -2.0).all() for layer in of(Highway, net))


def test_dense_mlp_widens_by_its_growth():
    net = dense_mlp(4, 2, depth=5, growth=3)
    assert [m.in_features for m in of(nn.Linear, net)] == [4, 7, 10, 13, 16, 19]


def test_resnet_halves_the_image_and_doubles_the_channels():
    net = resnet(3, 5, depth=7, width=4)
    sizes = []
    for block in net.blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    net(torch.randn(2, 3, 8, 8))
    assert sizes == [(4, 8, 8)] * 3 + [(8, 4, 4)] * 2 + [(16, 2, 2)] * 2
    assert [b.shortcut is not None for b in net.blocks] == [False, False, False, True, False, True, False]


@pytest.mark.parametrize("build", [resnet, partial(densenet, growth=4)])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 13), (32, 32)])
def test_images_of_any_size(build, size):
    assert build(2, 5, depth=4).eval()(torch.randn(2, 2, *size)).shape == (2, 5)


def test_densenet_compresses_between_its_stages():
    net = densenet(1, 5, depth=6, growth=4, compression=0.5)
    blocks = of(DenseBlock, net)
    widths = [sum(m.out_channels for m in of(nn.Conv2d, layer)[-1:]) for b in blocks for layer in b.layers]
    assert widths == [4] * 6
    assert net.head.in_features == ((8 + 8) // 2 + 8) // 2 + 8


def test_an_empty_batch_leaves_batch_statistics_alone():
    net = resnet(1, 5, depth=3)
    assert net(torch.empty(0, 1, 8, 8)).shape == (0, 5)
    for norm in of(nn.BatchNorm2d, net):
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()


def test_no_norm_means_none():
    for build in (resnet, densenet):
        assert not of(nn.BatchNorm2d, build(1, 5, depth=3, norm=None))
    assert all(m.bias is not None for m in of(nn.Conv2d, resnet(1, 5, depth=3, norm=None)))
    assert all(m.bias is None for b in resnet(1, 5, depth=3).blocks for m in of(nn.Conv2d, b))


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_plain_stack_is_torchs_own(cell):
    net = stacked_recurrent(3, None, hidden_size=6, depth=4, cell=cell)
    twin = cell(6, 6, num_layers=4, batch_first=True)
    with torch.no_grad():
        for index, layer in enumerate(net.layers):
            for name, value in layer.named_parameters():
                getattr(twin, name.replace("l0", f"l{index}")).copy_(value)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(net(x), twin(net.stem(x))[0])


def test_residual_lstm_is_its_equation():
    net = residual_lstm(3, 2, hidden_size=6, depth=3)
    x = torch.randn(2, 5, 3)
    h = net.stem(x)
    for block in net.layers:
        h = h + block.fn(block.norm(h))[0]
    torch.testing.assert_close(net(x), net.head(net.norm(h)[:, -1]))


def test_pools_of_a_recurrent_net():
    nets = {pool: residual_rnn(3, 2, hidden_size=6, depth=2, pool=pool) for pool in ("last", "mean")}
    nets["mean"].load_state_dict(nets["last"].state_dict())
    x = torch.randn(4, 5, 3)
    sequence = nets["last"].norm(_stream(nets["last"], x))
    torch.testing.assert_close(nets["last"](x), nets["last"].head(sequence[:, -1]))
    torch.testing.assert_close(nets["mean"](x), nets["mean"].head(sequence.mean(1)))


def _stream(net, x):
    h = net.stem(x)
    for block in net.layers:
        h = block(h)[0]
    return h


def test_depth_kills_the_plain_recurrent_stack_and_not_the_residual_one():
    torch.manual_seed(0)
    x = torch.randn(8, 6, 4)
    plain = gradient_ratio(stacked_recurrent(4, 2, hidden_size=16, depth=40), x)
    residual = gradient_ratio(residual_lstm(4, 2, hidden_size=16, depth=40), x)
    assert plain < 1e-6 and residual > 1e-3


def test_deep_residual_nets_learn_what_a_plain_one_does_not():
    """A hundred layers, from torch's own initial weights, with plain SGD."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] + x[:, 1] > 0).long()

    def last_loss(net):
        sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(25):
            sgd.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            sgd.step()
        return loss.item()

    assert last_loss(residual_mlp(8, 2, width=32, depth=50)) < 0.2
    assert last_loss(residual_mlp(8, 2, width=32, depth=50, placement=None, scale=SkipInit)) < 0.2
    assert last_loss(mlp(8, 2, width=32, depth=100)) > 0.68  # log 2 is 0.693


@pytest.mark.parametrize(
    ("error", "words", "build"),
    [
        (ValueError, "in_features must be at least 1, got 0", lambda: mlp(0, 2, width=4, depth=1)),
        (ValueError, "width must be at least 1, got -3", lambda: residual_mlp(2, 2, width=-3, depth=1)),
        (TypeError, "out_features must be a whole number, got float", lambda: highway_mlp(2, 2.0, width=4, depth=1)),
        (ValueError, "gate_bias must be finite", lambda: highway_mlp(2, 2, width=4, depth=1, gate_bias=math.nan)),
        (ValueError, "growth must be at least 1", lambda: dense_mlp(2, 2, depth=1, growth=0)),
        (ValueError, "dropout must be between 0 and 1", lambda: mlp(2, 2, width=4, depth=1, dropout=-1.0)),
        (ValueError, "drop_path must be between 0 and 1, got 2.0",
         lambda: residual_mlp(2, 2, width=4, depth=1, drop_path=2.0)),
        (ValueError, "placement must be", lambda: residual_mlp(2, 2, width=4, depth=1, placement="both")),
        (TypeError, "scale must be a module class or a factory, got SkipInit",
         lambda: residual_mlp(2, 2, width=4, depth=1, scale=SkipInit())),
        (TypeError, "activation must be a module class or a factory, got ReLU",
         lambda: mlp(2, 2, width=4, depth=1, activation=nn.ReLU())),
        (TypeError, "norm must be .* got LayerNorm: pass the class",
         lambda: residual_mlp(2, 2, width=4, depth=1, norm=nn.LayerNorm(4))),
        (TypeError, "cell must be .* got LSTM",
         lambda: stacked_recurrent(2, 2, hidden_size=4, depth=1, cell=nn.LSTM(4, 4))),
        (ValueError, "depth must be at least 3, got 2", lambda: resnet(1, 2, depth=2)),
        (ValueError, "compression must be above 0", lambda: densenet(1, 2, depth=3, compression=0.0)),
        (ValueError, "pool must be 'last' or 'mean', got 'max'",
         lambda: residual_lstm(2, 2, hidden_size=4, depth=1, pool="max")),
        (ValueError, "num_classes must be at least 1", lambda: residual_lstm(2, 0, hidden_size=4, depth=1)),
    ],
)  # fmt: skip
def test_refuses(error, words, build):
    with pytest.raises(error, match=words):
        build()
