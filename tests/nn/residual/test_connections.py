"""What is special to highway, dense block, gates and hyper-connections."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from steadygrad.init import initialise
from steadygrad.nn.residual import (
    DenseBlock,
    GRUGate,
    Highway,
    HighwayGate,
    HyperConnection,
    InputGate,
    OutputGate,
    Residual,
    SigmoidTanhGate,
    expand_streams,
    highway,
    highway_conv2d,
    highway_linear,
    reduce_streams,
)


def test_highway_gate_starts_at_its_bias_and_carries():
    layer = highway_linear(16, gate_bias=-3.0)
    assert (layer.gate.bias == -3.0).all() and (layer.transform[0].bias != -3.0).any()
    x = torch.randn(8, 16)
    assert (layer(x) - x).abs().max() < 0.3 * (layer.transform(x) - x).abs().max()


def test_highway_of_any_two_modules():
    gate = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4))
    before = gate[0].bias.clone()
    layer = Highway(nn.Identity(), gate, gate_bias=-1.5)
    assert (gate[2].bias == -1.5).all() and torch.equal(gate[0].bias, before)
    kept = Highway(nn.Identity(), nn.Linear(4, 4, bias=False), gate_bias=None)
    x = torch.randn(3, 4)
    torch.testing.assert_close(kept(x), x)
    with torch.no_grad():
        gate[2].bias.zero_()
    layer.reset_gate_bias()
    assert (gate[2].bias == -1.5).all()


def test_highway_refuses():
    with pytest.raises(ValueError, match="the gate has no bias"):
        Highway(nn.Identity(), nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 4\) and \(2, 3\)"):
        Highway(nn.Linear(4, 3), nn.Linear(4, 3))(torch.ones(2, 4))
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        highway_conv2d(2, kernel_size=4)
    with pytest.raises(ValueError, match="gate_bias must be finite"):
        highway_linear(4, gate_bias=math.inf)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        highway_linear(0)


def test_a_closed_highway_gate_hides_no_non_finite_value():
    out = highway(torch.zeros(1), torch.tensor([math.inf]), torch.tensor([-1e4]))
    assert not out.isfinite().all()


def _dense():
    widths = range(6, 14, 2)
    return [nn.Sequential(nn.BatchNorm1d(w), nn.Linear(w, 2), nn.Dropout(0.3)) for w in widths]


def test_recomputing_dense_block_is_the_same_to_the_bit():
    """Output, gradients, running statistics, counts of batches and random numbers."""
    plain = DenseBlock(_dense(), dim=-1)
    again = copy.deepcopy(plain)
    again.memory_efficient = True
    x = torch.randn(8, 6)
    results = []
    for block in (plain, again):
        torch.manual_seed(0)
        inputs = x.clone().requires_grad_()
        for _ in range(2):
            out = block(inputs)
            out.square().sum().backward()
        results.append(
            [out, inputs.grad, torch.rand(1), *(p.grad for p in block.parameters()), *block.buffers()]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_recomputing_dense_block_keeps_less():
    def kept(memory_efficient):
        block, saved = DenseBlock(_dense(), dim=-1, memory_efficient=memory_efficient), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
            block(torch.randn(256, 6))
        return sum(saved)

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.slow
def test_recomputing_dense_block_compiles_with_batch_norm():
    torch.compiler.reset()
    plain = DenseBlock(_dense(), dim=-1, memory_efficient=True)
    for layer in plain.layers:
        layer[2].p = 0.0
    compiled = copy.deepcopy(plain)
    run, x = torch.compile(compiled, backend="aot_eager", fullgraph=True), torch.randn(8, 6)
    for forward in (plain, run):
        forward(x).square().sum().backward()
    for a, b in zip((*plain.parameters(),), (*compiled.parameters(),), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(plain.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_dense_block_of_nothing_is_the_identity():
    x = torch.randn(2, 3)
    assert torch.equal(DenseBlock([])(x), x)


@pytest.mark.parametrize("gate", [GRUGate, OutputGate, HighwayGate, SigmoidTanhGate, InputGate])
def test_gates_start_near_the_skip(gate):
    """With a large bias the branch is shut out; only the input gate, which has no hold on it, adds it whole."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 8), torch.randn(16, 8)
    out = gate(8, bias_init=30.0)(x, y)
    torch.testing.assert_close(out, x + y if gate is InputGate else x, rtol=1e-4, atol=1e-4)


def test_gates_refuse():
    with pytest.raises(ValueError, match="d_model must be at least 1, got 0"):
        GRUGate(0)
    with pytest.raises(ValueError, match="bias_init must be finite"):
        OutputGate(4, bias_init=math.nan)


def _pair(dynamic, depth=6, width=8, n=4):
    """A plain pre-norm net and one of hyper-connections over the same functions."""
    torch.manual_seed(0)
    fns = [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(depth)]
    plain = nn.Sequential(*(Residual(f, width) for f in fns))
    hyper = nn.Sequential(
        *(HyperConnection(f, width, num_streams=n, layer_index=k, dynamic=dynamic) for k, f in enumerate(fns))
    )
    return plain, hyper


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_hyper_connections_start_as_the_plain_pre_norm_net(dynamic, n):
    plain, hyper = _pair(dynamic, n=n)
    x = torch.randn(5, 3, 8)
    wanted, streams = plain(x), hyper(expand_streams(x, n))
    for stream in streams.unbind(-2):
        torch.testing.assert_close(stream, wanted)
    norm = nn.LayerNorm(8)
    torch.testing.assert_close(norm(reduce_streams(streams)), norm(wanted), rtol=1e-4, atol=1e-4)


def test_hyper_connections_start_with_the_gradient_of_the_plain_net():
    plain, hyper = _pair(True)
    x = torch.randn(5, 8)
    norm = nn.LayerNorm(8)
    grads = []
    for net in (lambda: plain(x), lambda: reduce_streams(hyper(expand_streams(x, 4)))):
        norm(net()).pow(3).sum().backward()
        grads.append([p.grad.clone() for block in plain for p in block.fn.parameters()])
        plain.zero_grad()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_every_mixing_weight_of_hyper_connections_learns():
    _, hyper = _pair(True)
    reduce_streams(hyper(expand_streams(torch.randn(5, 8), 4))).pow(3).sum().backward()
    mixing = {n: p.grad.abs().max() for n, p in hyper.named_parameters() if ".mix_" in n}
    assert len(mixing) == 6 * 4 and all(grad > 0 for grad in mixing.values())


def test_hyper_connections_survive_initialise_where_they_are_kept():
    net = nn.Sequential(
        nn.Linear(8, 8), *(HyperConnection(nn.Linear(8, 8), 8, num_streams=2) for _ in range(3))
    )
    net[0].register_forward_hook(lambda m, i, out: expand_streams(out, 2))
    names = [n for n, _ in net.named_parameters() if ".mix_" in n]
    before = {n: net.get_parameter(n).clone() for n in names}
    report = initialise(net, torch.randn(16, 8), keep=names)
    assert all(torch.equal(net.get_parameter(n), before[n]) for n in names)
    assert {row.weight for row in report.rows} == {"0.weight", *(f"{k}.fn.weight" for k in (1, 2, 3))}


def test_hyper_connections_read_one_stream_each_in_turn():
    blocks = [HyperConnection(nn.Identity(), 2, num_streams=3, layer_index=k) for k in range(5)]
    assert [b.mix_in.argmax().item() for b in blocks] == [0, 1, 2, 0, 1]


def test_hyper_connection_takes_the_first_of_a_tuple_and_passes_arguments():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    block = HyperConnection(attention, 8, num_streams=2, dynamic=False, norm=None)
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    out = block(expand_streams(x, 2), memory, memory)
    torch.testing.assert_close(out[..., 1, :], x + attention(x, memory, memory)[0])


def test_hyper_connection_refuses():
    block = HyperConnection(nn.Identity(), 8, num_streams=4)
    for shape in [(2, 8), (2, 3, 8), (2, 4, 7)]:
        with pytest.raises(ValueError, match=r"must have shape \(..., 4, 8\).*expand_streams"):
            block(torch.ones(shape))
    with pytest.raises(ValueError, match="num_streams must be at least 1, got 0"):
        HyperConnection(nn.Identity(), 8, num_streams=0)
    with pytest.raises(ValueError, match="layer_index must be at least 0, got -1"):
        HyperConnection(nn.Identity(), 8, layer_index=-1)
    with pytest.raises(TypeError, match="fn must be a module or a function"):
        HyperConnection(None, 8)
