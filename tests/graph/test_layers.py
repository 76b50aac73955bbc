"""Signals layer by layer against direct measurement, recurrences against a closed form, and nothing left behind."""

import contextlib
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from steadygrad.graph import layers as module
from steadygrad.graph.layers import LayerReader, backward_gains, decades, forward_gains
from steadygrad.graph.walk import Graph
from steadygrad.graph.weights import find_uses


def reader_of(*roots):
    graph = Graph(roots)
    return LayerReader(graph, find_uses(graph))


def names_of(model):
    return {id(p): n for n, p in model.named_parameters()}


def read(model, make_loss, backward=lambda loss: loss.backward()):
    loss = make_loss()
    reader = reader_of(loss)
    backward(loss)
    return reader.read(names_of(model))


def rms(x):
    return x.double().square().mean().sqrt().item()


class Measured:
    """Inputs, outputs and output gradients of modules, by plain hooks: the oracle."""

    def __init__(self, model, kinds=(nn.Linear, nn.Conv2d)):
        self.calls = []
        for name, part in model.named_modules():
            if isinstance(part, kinds):
                part.register_forward_hook(self.keep(name))

    def keep(self, name):
        def hook(part, args, out):
            if out.requires_grad:
                self.calls.append((name, args[0].detach().clone(), out))

        return hook

    def rows(self, loss):
        grads = torch.autograd.grad(loss, [out for *_, out in self.calls], retain_graph=True)
        return {
            name: (rms(x), x.abs().max().item(), rms(out), rms(g))
            for (name, x, out), g in zip(self.calls, grads, strict=True)
        }


def mlp():
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, 3)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)
    )


def weight_normed():
    model = mlp()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    return model


NETS = {
    "mlp": (mlp, (7, 6)),
    "long batch": (mlp, (200, 6)),
    "cnn": (cnn, (3, 2, 8, 8)),
    "transformer": (transformer, (3, 5, 6)),
    "parametrised": (weight_normed, (7, 6)),
}


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("needs_grad", [False, True], ids=["", "inputs with gradient"])
@pytest.mark.parametrize("net", NETS)
def test_against_direct_measurement(net, needs_grad, cast):
    torch.manual_seed(0)
    make, shape = NETS[net]
    model = make()
    measured, x = Measured(model), torch.randn(shape, requires_grad=needs_grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        loss = model(x).float().square().mean()
    expected = measured.rows(loss)
    names = names_of(model)
    reader = reader_of(loss)
    loss.backward()
    rows, recurrences = reader.read(names)
    assert recurrences == ()
    found = {row.name.replace("parametrizations.", "").rsplit(".weight", 1)[0]: row for row in rows}
    assert expected.keys() - {n for n in expected if n.endswith("out_proj")} <= found.keys()
    for name, (given, largest, _, grad) in expected.items():
        if name in found:
            row = found[name]
            near = 0.02 if cast else 1e-5
            assert row.input_rms == pytest.approx(given, rel=near) and row.uses == 1
            assert row.input_max == pytest.approx(largest, rel=near)
            assert row.grad_rms == pytest.approx(grad, rel=near)
            assert row.dtype == ("bfloat16" if cast else "float32")
    last = list(expected)[-1]
    assert rows[-1].name.startswith(last)
    assert found[last].output_rms == pytest.approx(expected[last][2], rel=0.02 if cast else 1e-5)
    assert all(math.isnan(row.output_rms) for row in rows[:-1])


def test_the_order_is_that_of_the_run():
    model = transformer()
    rows, _ = read(model, lambda: model(torch.randn(2, 5, 6)).mean())
    assert [r.name for r in rows] == [n for n, p in model.named_parameters() if p.dim() > 1]


@pytest.mark.parametrize("left", [False, True], ids=["x @ W", "W @ x"])
def test_products_written_by_hand(left):
    w, x = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 9) if left else torch.randn(9, 4)
    out = (w @ x) if left else (x @ w)
    reader = reader_of(out.sum())
    out.sum().backward()
    assert reader.read({id(w): "w"})[0][0].input_rms == pytest.approx(rms(x))
    (g,) = torch.autograd.grad((z := (w @ x if left else x @ w)).square().sum(), z)
    loss = (w @ x if left else x @ w).square().sum()
    reader = reader_of(loss)
    loss.backward()
    assert reader.read({id(w): "w"})[0][0].grad_rms == pytest.approx(rms(g))


def test_tied_weights_are_one_row():
    table = nn.Embedding(10, 4)
    reader = reader_of(loss := (table(torch.tensor([1, 2, 3])) @ table.weight.t()).square().mean())
    loss.backward()
    ((row,), recurrences) = reader.read({id(table.weight): "table"})
    assert (row.op, row.uses, recurrences) == ("Embedding", 2, ())
    assert row.input_rms == pytest.approx(rms(table.weight[1:4].detach()))


def test_learned_tokens_and_penalties_are_no_layers():
    token, w = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 4)
    queries = nn.Parameter(torch.randn(5, 4))
    x = torch.cat([token.expand(2, -1, -1), torch.randn(2, 3, 4)], 1)
    penalty = (w.weight @ w.weight.t()).square().mean()
    loss = w(x).square().mean() + penalty
    names = {id(token): "token", id(w.weight): "w", id(queries): "queries"}
    assert [(r.name, r.uses) for r in _rows(loss, names)] == [("w", 1)]
    assert [(r.name, r.uses) for r in _rows(w(queries).sum(), names)] == [("w", 1)]
    image = nn.Parameter(torch.randn(1, 1, 8, 8))
    assert _rows(F.conv2d(image, torch.randn(2, 1, 3, 3)).sum(), {id(image): "image"}) == ()


def _rows(loss, names):
    reader = reader_of(loss)
    loss.backward()
    return reader.read(names)[0]


# ---------------------------------------------------------------------- recurrences
T = 24


class CellLoop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell(3, 5)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Fused(nn.Module):
    def __init__(self, kind, **more):
        super().__init__()
        self.rnn = kind(3, 5, batch_first=True, **more)

    def forward(self, x):
        return self.rnn(x)[0]


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.w = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5, 5) / 3)

    def forward(self, x):
        h = torch.zeros(len(x), 5)
        for step in x.unbind(1):
            h = torch.tanh(step @ self.u + h @ self.w)
        return h


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(3, 5), nn.Linear(5, 5)

    def forward(self, x):
        h = self.first(x)
        for _ in range(T):
            h = self.layer(h).relu()
        return h


class Euler(Shared):
    def forward(self, x):
        h = self.first(x)
        for _ in range(T):
            h = h + 0.1 * torch.tanh(self.layer(h))
        return h


RECURRENT = {
    "rnn tanh": (lambda: Fused(nn.RNN), {"rnn.weight_hh_l0"}),
    "rnn relu": (lambda: Fused(nn.RNN, nonlinearity="relu"), {"rnn.weight_hh_l0"}),
    "two layers": (lambda: Fused(nn.RNN, num_layers=2), {"rnn.weight_hh_l0", "rnn.weight_hh_l1"}),
    "gru": (lambda: Fused(nn.GRU), {"rnn.weight_hh_l0"}),
    "cell": (lambda: CellLoop(nn.RNNCell), {"cell.weight_hh"}),
    "lstm cell": (lambda: CellLoop(nn.LSTMCell), {"cell.weight_hh"}),
    "by hand": (ByHand, {"w"}),
    "shared layer": (Shared, {"layer.weight"}),
    "euler": (Euler, {"layer.weight"}),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrences_are_found(kind):
    torch.manual_seed(0)
    make, expected = RECURRENT[kind]
    model = make()
    rows, found = read(model, lambda: model(torch.randn(4, T, 3)).square().mean())
    assert {r.name for r in found} == expected
    assert all(T - 1 <= r.steps <= T for r in found)
    for r in found:
        weight = dict(model.named_parameters())[r.name].detach()
        exact = max(float(torch.linalg.matrix_norm(b, 2)) for b in weight.split(5))
        assert r.gain == pytest.approx(exact, rel=0.03) and r.gain <= exact * 1.0001


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5))

    def forward(self, x):
        return torch.stack([self.body(part) for part in x.unbind(1)]).sum(0)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Siamese, (4, 12, 3)), (cnn, (3, 2, 8, 8)), (transformer, (2, 9, 6))],
    ids=["side by side", "convolutions", "transformer"],
)
def test_no_recurrence_where_there_is_none(make, shape):
    model = make()
    assert read(model, lambda: model(torch.randn(shape)).mean())[1] == ()


@pytest.mark.parametrize(("steps", "a"), [(8, 1.5), (40, 1.2), (40, 0.7), (64, 0.9), (400, 1.03)])
def test_growth_against_the_closed_form(steps, a):
    w = nn.Parameter(torch.eye(3) * a)
    h = torch.full((2, 3), 2.0)
    for _ in range(steps):
        h = h @ w
    reader = reader_of(h.sum())
    h.sum().backward()
    ((row,), (r,)) = reader.read({id(w): "w"})
    # h_t = a^t h_0: the middles of the first and the last quarter are this many steps apart.
    expected = (steps - max(1, steps // 4)) * math.log10(a)
    near = dict(rel=0.02 if steps > module.MAX_LOOKS else 1e-4)
    assert (row.uses, r.steps) == (steps, steps)
    assert r.forward_decades == pytest.approx(expected, **near)
    assert r.backward_decades == pytest.approx(expected, **near)
    assert r.gain == pytest.approx(a, rel=1e-4)
    powers = [2 * a**t for t in range(steps)][-max(1, steps // 4) :]
    assert r.state_rms == pytest.approx(sum(powers) / len(powers), rel=0.1 if steps > 64 else 1e-4)


def test_a_state_that_overflows():
    w = nn.Parameter(torch.eye(3) * 1e6)
    h = torch.ones(2, 3)
    for _ in range(12):
        h = h @ w
    reader = reader_of(h.sum())
    h.sum().backward()
    (_, (r,)) = reader.read({id(w): "w"})
    assert r.forward_decades == r.backward_decades == math.inf and math.isnan(r.state_rms)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e25, 3e38])
def test_rms_of_any_size(size):
    x = torch.randn(500).clamp(-3, 3) / 3
    assert float(module._rms(x * size)) == pytest.approx(rms(x) * size, rel=1e-4)


def test_decades():
    assert decades([1.0, 10.0, 100.0, 1000.0]) == pytest.approx(3)
    assert decades([0.0, 0.0, 1.0, math.nan, 0.1]) == pytest.approx(-1)
    assert math.isnan(decades([])) and math.isnan(decades([0.0, 0.0])) and math.isnan(decades([math.nan]))
    assert decades([1.0, math.inf]) == math.inf and decades([1.0, 1.0, 0.0]) < -40


def test_gains():
    model = mlp()
    rows, _ = read(model, lambda: model(torch.randn(7, 6)).mean())
    forward, backward = forward_gains(rows), backward_gains(rows)
    assert forward[:2] == pytest.approx(
        [rows[1].input_rms / rows[0].input_rms, rows[2].input_rms / rows[1].input_rms]
    )
    assert forward[2] == pytest.approx(rows[2].output_rms / rows[2].input_rms)
    assert math.isnan(backward[0]) and backward[2] == pytest.approx(rows[1].grad_rms / rows[2].grad_rms)


# ---------------------------------------------------------------------- do no harm
def penalty(model, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return model(x).square().mean() + g.square().mean()


def twice(loss):
    loss.backward(retain_graph=True)
    loss.backward()


def with_graph(loss):
    parameters = [p for p in _leaves(loss) if p.requires_grad]
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters, create_graph=True), strict=True):
        p.grad = g.detach()


def _leaves(loss):
    return list(Graph([loss]).leaves.values())


@pytest.mark.parametrize(
    "backward", [lambda loss: loss.backward(), twice, with_graph, lambda loss: (loss * 65536).backward()]
)
@pytest.mark.parametrize("make_loss", [lambda m, x: m(x).square().mean(), penalty])
def test_gradients_are_the_same_bits(make_loss, backward):
    model, x = mlp(), torch.randn(7, 6)
    results = []
    for watched in (False, True):
        model.zero_grad()
        loss = make_loss(model, x)
        reader = reader_of(loss) if watched else None
        backward(loss)
        if reader is not None:
            rows, _ = reader.read(names_of(model))
            assert len(rows) == 3 and all(row.grad_rms > 0 for row in rows)
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_are_left_alone(reentrant):
    model, x, runs = mlp(), torch.randn(7, 6, requires_grad=True), []
    model[2].register_forward_hook(lambda *_: runs.append(1))
    loss = checkpoint(model[:4], x, use_reentrant=reentrant)
    loss = model[4](loss).square().mean()
    reader = reader_of(loss)
    assert len(runs) == 1
    loss.backward()
    rows, _ = reader.read(names_of(model))
    assert len(runs) == 2 and rows[-1].name == "4.weight" and rows[-1].grad_rms > 0
    assert all(math.isnan(row.input_rms) for row in rows[:-1])


def test_nothing_of_the_graph_is_kept():
    model, x = mlp(), torch.randn(7, 6)
    hidden = model[:4](x)
    loss = model[4](hidden).sum()
    kept = weakref.ref(hidden)
    reader = reader_of(loss)
    gc.disable()
    try:
        del hidden
        loss.backward()
        del loss
        assert kept() is None
    finally:
        gc.enable()
    assert len(reader.read(names_of(model))[0]) == 3
    weights = [weakref.ref(p) for p in model.parameters()]
    del model
    assert all(w() is None for w in weights)


@pytest.mark.parametrize("end", ["read", "close"])
def test_a_graph_that_is_kept_by_others_loses_its_hooks(end):
    model = mlp()
    loss = model(torch.randn(7, 6)).sum()
    reader = reader_of(loss)
    rows = list(reader._rows.values())
    loss.backward(retain_graph=True)
    if end == "read":
        reader.read(names_of(model))
    else:
        reader.close()
        assert reader.read(names_of(model)) == ((), ())
    for row in rows:
        row.grads.clear()
    loss.backward()
    assert all(not row.grads for row in rows)


def test_an_odd_gradient_never_raises_in_the_users_backward(monkeypatch):
    def broken(x):
        raise RuntimeError("not implemented for this tensor")

    model = mlp()
    loss = model(torch.randn(7, 6)).sum()
    reader = reader_of(loss)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_rms", broken)
        loss.backward()
    assert all(math.isnan(row.grad_rms) for row in reader.read(names_of(model))[0])


def test_a_compiled_model_has_no_layers():
    torch._dynamo.reset()
    model = mlp()
    compiled = torch.compile(model, backend="aot_eager")
    assert read(model, lambda: compiled(torch.randn(7, 6)).mean()) == ((), ())


def test_no_random_number_is_drawn():
    model = Fused(nn.GRU)
    loss = model(torch.randn(4, T, 3)).mean()
    before = torch.get_rng_state()
    with contextlib.nullcontext(reader_of(loss)) as reader:
        loss.backward()
        reader.read(names_of(model))
    assert torch.equal(before, torch.get_rng_state())


def test_gains_of_no_layers():
    assert backward_gains(()) == forward_gains(()) == []
