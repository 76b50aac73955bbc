"""The audit of recurrences: growth through time against plain autograd, what is off, and what is only told."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from steadygrad.init import audit
from steadygrad.nn import IndRNN, LayerNormLSTM
from tests.init.nets import HandRNN, Net

KINDS = (nn.RNN, nn.LSTM, nn.GRU)


class Reader(nn.Module):
    """A recurrent module and a classifier that reads its last output or its last state."""

    def __init__(self, rnn: nn.Module, read: str = "last"):
        super().__init__()
        self.rnn, self.read = rnn, read
        with torch.no_grad():
            width = self.features(torch.zeros(1, 2, rnn.input_size)).shape[-1]
        self.head = nn.Linear(width, 3)

    def features(self, x):
        if self.rnn.batch_first is False and not isinstance(x, PackedSequence) and x.dim() == 3:
            x = x.transpose(0, 1)
        output, state = self.rnn(x)
        if self.read == "last":
            return output[-1] if output.dim() == 2 or not self.rnn.batch_first else output[:, -1]
        if self.read == "every":
            return output
        return (state[self.read == "c_n"] if isinstance(state, tuple) else state)[-1]

    def forward(self, x):
        return self.head(self.features(x))


def scaled(rnn: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if "weight_hh" in name:
                parameter.mul_(by)
    return rnn


def squared(output):
    return output.square().sum()


def truth(model: nn.Module, x: torch.Tensor, time: int = 1) -> float:
    """|dL/dx_0| / |dL/dx_T| by plain autograd."""
    x = x.clone().requires_grad_()
    squared(model(x)).backward()
    model.zero_grad()
    norms = [g.double().norm() for g in x.grad.unbind(time)]
    return (norms[0] / norms[-1]).item()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("read", ["last", "h_n", "c_n", "every"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [0.3, 1.0, 6.0])
def test_growth_is_that_of_autograd(kind, read, by):
    model, x = Reader(scaled(kind(4, 16, batch_first=True), by), read), 0.1 * torch.randn(5, 20, 4)
    (row,) = audit(model, x, squared).through_time
    assert row.weight == "rnn.weight_hh_l0" and row.steps == 20
    assert row.growth == pytest.approx(truth(model, x), rel=1e-3)


@pytest.mark.parametrize("read", ["last", "h_n", "every"])
def test_an_exploding_rnn_is_off(read):
    """The reviewer's: nn.RNN(8, 32), weight_hh times 6, 100 steps."""
    model = Reader(scaled(nn.RNN(8, 32, batch_first=True), 6), read)
    x = 0.05 * torch.randn(16, 100, 8)
    result = audit(model, x, squared)
    assert truth(model, x) > 1e9
    assert list(result.off) == ["rnn.weight_hh_l0"]
    assert "explodes through time" in result.off["rnn.weight_hh_l0"]
    (row,) = result.through_time
    assert row.growth > 1e9 and row.alone > 1e9 and row.per_step > 1.2 and row.reach == 99
    assert f"x{row.growth:.3g} back through 99 steps" in str(result)


@pytest.mark.parametrize("read", ["last", "h_n"])
def test_exploding_lstm_and_gru_are_off(read):
    for kind, by in ((nn.LSTM, 50), (nn.GRU, 30)):
        result = audit(Reader(scaled(kind(8, 16, batch_first=True), by), read), torch.randn(4, 60, 8))
        assert "explodes through time" in result.off["rnn.weight_hh_l0"], kind
        row = result.rows[0]
        assert row.weight == "rnn.weight_hh_l0" and row.grad_norm > 0 and row.backward > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("width", [16, 64])
def test_torchs_defaults_fade_and_are_not_off(kind, steps, width):
    result = audit(Reader(kind(8, width, batch_first=True), "h_n"), torch.randn(4, steps, 8))
    (row,) = result.through_time
    assert result.off == {} and row.alone < 1e-3 and 0.35 < row.per_step < 0.8
    assert row.alone == pytest.approx(row.per_step ** (steps - 1), rel=1e-3) or row.alone < 1e-20
    assert 3 < row.reach < 30
    (note,) = result.notes
    assert "fades through time" in note and f"after {row.reach + 1} of {steps - 1} steps" in note


def test_an_orthogonal_recurrence_has_nothing_to_tell():
    rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
    nn.init.eye_(rnn.weight_hh_l0)
    result = audit(Reader(rnn), torch.randn(4, 50, 8))
    assert result.off == {} and result.notes == () and 0.5 < result.through_time[0].per_step < 1.1


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_a_recurrence_without_memory_is_off(kind):
    rnn = scaled(kind(8, 16, batch_first=True), 0.01)
    if kind is nn.LSTM:
        with torch.no_grad():
            rnn.bias_ih_l0[16:32] = -6.0  # the forget gate closed
    result = audit(Reader(rnn), torch.randn(4, 20, 8))
    assert "vanishes through time" in result.off["rnn.weight_hh_l0"]
    assert result.through_time[0].per_step < 0.1 and not any("fades" in n for n in result.notes)


def test_overflow_and_underflow_on_the_way():
    """Beyond the range of float32: inf and 0 in the first steps are an explosion and a fading, not nan."""
    rnn = nn.RNN(2, 4, bias=False, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(3.0 * torch.eye(4))
        rnn.weight_ih_l0.fill_(1.0)
    x = torch.zeros(1, 100, 2)
    x[:, 0] = 1e-30
    row = audit(Reader(rnn), x).through_time[0]
    assert row.growth == row.alone == math.inf
    assert row.per_step == pytest.approx(3.0, rel=1e-3)
    row = audit(Reader(nn.LSTM(8, 16, batch_first=True)), torch.randn(4, 300, 8)).through_time[0]
    assert row.growth == row.alone == 0 and 0.35 < row.per_step < 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", ["last", "h_n"])
def test_stacked_layers_have_a_row_each(kind, read):
    model, x = Reader(kind(4, 8, 3, batch_first=True), read), torch.randn(5, 12, 4)
    result = audit(model, x, squared)
    assert [r.weight for r in result.rows] == [*(f"rnn.weight_hh_l{i}" for i in range(3)), "head.weight"]
    assert [t.weight for t in result.through_time] == [r.weight for r in result.rows[:3]]
    assert all(
        math.isfinite(v) and v > 0 for r in result.rows for v in (r.forward, r.output_rms, r.grad_norm)
    )
    # the same net in three modules: autograd sees what is between the layers
    layers = [kind(4 if i == 0 else 8, 8, batch_first=True) for i in range(3)]
    for i, layer in enumerate(layers):
        layer.load_state_dict({k: getattr(model.rnn, k.replace("l0", f"l{i}")) for k in layer.state_dict()})
    states = [x.clone().requires_grad_()]
    for layer in layers:
        output, _ = layer(states[-1])
        output.retain_grad()
        states.append(output)
    squared(model.head(states[-1][:, -1])).backward()
    for i, time in enumerate(result.through_time):
        norms = states[i].grad.norm(dim=(0, 2))
        assert time.growth == pytest.approx((norms[0] / norms[-1]).item(), rel=1e-3)
        assert result.rows[i].grad_norm == pytest.approx(states[i + 1].grad.norm().item(), rel=1e-3)
        assert result.rows[i].output_rms == pytest.approx(
            states[i + 1].square().mean().sqrt().item(), rel=1e-4
        )


def test_of_a_stack_the_layer_that_explodes_is_named():
    rnn = nn.RNN(8, 32, 2, batch_first=True)
    with torch.no_grad():
        rnn.weight_hh_l1.mul_(6)
    result = audit(Reader(rnn), 0.05 * torch.randn(8, 80, 8))
    below, above = result.through_time
    assert above.alone > 1e3 and below.alone < 1
    assert "explodes through time" in result.off["rnn.weight_hh_l1"]
    assert "through time" not in result.off.get("rnn.weight_hh_l0", "")
    assert below.growth > 1e3 and any("arrives so from above" in n for n in result.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional(kind):
    """Each direction from its own last step to its own first; out[:, -1] of the reverse one has seen one step."""
    model, x = Reader(kind(4, 8, batch_first=True, bidirectional=True), "every"), torch.randn(5, 12, 4)
    result = audit(model, x, lambda out: (out[:, -1] + out[:, 0]).square().sum())
    there, back = result.through_time
    assert (there.weight, back.weight) == ("rnn.weight_hh_l0", "rnn.weight_hh_l0_reverse")
    assert [r.weight for r in result.rows[:2]] == [there.weight, back.weight]
    for row, side in ((there, 0), (back, 1)):  # the other direction cut off
        given = x.clone().requires_grad_()
        output, _ = model.rnn(given)
        halves = [h if i == side else h.detach() for i, h in enumerate(output.chunk(2, -1))]
        out = model.head(torch.cat(halves, -1))
        (out[:, -1] + out[:, 0]).square().sum().backward()
        norms = given.grad.norm(dim=(0, 2))
        first, last = (0, -1) if side == 0 else (-1, 0)
        assert row.growth == pytest.approx((norms[first] / norms[last]).item(), rel=1e-3)
    model.read = "last"
    result = audit(model, x)
    assert math.isnan(result.through_time[1].growth) and result.through_time[1].alone > 0
    assert any(n.startswith("rnn.weight_hh_l0_reverse: growth of the loss") for n in result.notes)
    model = Reader(kind(4, 32, batch_first=True, bidirectional=True))
    with torch.no_grad():
        model.rnn.weight_hh_l0_reverse.mul_({nn.RNN: 6, nn.LSTM: 50, nn.GRU: 30}[kind])
    off = audit(model, 0.1 * x.repeat(1, 8, 1)).off
    assert "explodes" in off["rnn.weight_hh_l0_reverse"] and "rnn.weight_hh_l0" not in off


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_the_longest_count(kind, both):
    lengths = torch.tensor([3, 9, 9, 5])
    model = Reader(kind(4, 8, 2, bidirectional=both), "h_n")
    x = torch.randn(9, 4, 4)
    packed = Net(lambda m, x: m.reader(pack_padded_sequence(x, lengths, enforce_sorted=False)), reader=model)
    rows = audit(packed, x, squared).through_time
    assert len(rows) == (4 if both else 2) and all(r.steps == 9 for r in rows)
    if not both:
        given = x.clone().requires_grad_()
        squared(packed(given)).backward()
        norms = given.grad[:, [1, 2]].norm(dim=(1, 2))
        assert rows[0].growth == pytest.approx((norms[0] / norms[-1]).item(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_unbatched_time_first_and_projected():
    x = torch.randn(7, 4)
    for rnn in (nn.LSTM(4, 8), nn.LSTM(4, 8, batch_first=True), nn.LSTM(4, 8, proj_size=3)):
        model = Reader(rnn, "h_n")
        row = audit(model, x, squared).through_time[0]
        assert row.steps == 7 and row.growth == pytest.approx(truth(model, x, 0), rel=1e-3)
    model = Reader(nn.GRU(4, 8))
    x = torch.randn(3, 7, 4)
    assert audit(model, x, squared).through_time[0].growth == pytest.approx(truth(model, x), rel=1e-3)


class Loop(nn.Module):
    """A cell called step by step."""

    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 3)

    def states(self, x):
        state, states = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            states.append(state)
        return states

    def forward(self, x):
        last = self.states(x)[-1]
        return self.head(last[0] if isinstance(last, tuple) else last)


@pytest.mark.parametrize(("kind", "by"), [(nn.RNNCell, 6), (nn.LSTMCell, 50), (nn.GRUCell, 30)])
def test_a_loop_over_a_cell(kind, by):
    model, x = Loop(kind(4, 16)), torch.randn(5, 40, 4)
    result = audit(model, x, squared)
    (row,) = result.through_time
    assert row.weight == "cell.weight_hh" and row.steps == 40 and result.off == {}
    states = [s if isinstance(s, tuple) else (s,) for s in model.states(x)]
    loss = squared(model.head(states[-1][0]))
    norms = []
    for state in (states[0], states[-1]):
        found = torch.autograd.grad(loss, state, retain_graph=True, allow_unused=True)
        norms.append(math.hypot(*[0.0 if g is None else g.norm().item() for g in found]))
    assert row.growth == pytest.approx(norms[0] / norms[1], rel=1e-3)
    assert [r.weight for r in result.rows] == ["cell.weight_hh", "head.weight"] and result.rows[
        0
    ].backward > 0
    scaled(model, by)
    result = audit(model, 0.1 * x.repeat(1, 3, 1))
    assert "explodes through time" in result.off["cell.weight_hh"]


@pytest.mark.parametrize(("gain", "growth"), [(1.5, 1.5**18), (1.0, 1.0), (0.5, 0.5**18), (0.05, 0.05**18)])
def test_a_loop_by_hand(gain, growth):
    model = HandRNN(function=torch.nn.Identity())
    with torch.no_grad():
        nn.init.orthogonal_(model.recurrent, gain)
    result = audit(model, torch.randn(6, 20, 4))
    (row,) = result.through_time
    assert (row.weight, row.steps) == ("recurrent", 19)  # the zero state at the start has no gradient
    assert row.growth == pytest.approx(growth, rel=1e-3) and row.alone == pytest.approx(growth, rel=1e-3)
    assert row.per_step == pytest.approx(gain, rel=1e-3)
    word = {1.5: "explodes", 0.05: "vanishes"}.get(gain)
    reason = result.off.get("recurrent", "")
    assert (word in reason) if word else ("through time" not in reason)
    assert any("fades" in n for n in result.notes) == (gain == 0.5)


def test_layers_of_steadygrad():
    x = torch.randn(8, 30, 4)
    model = Reader(LayerNormLSTM(4, 16, 2, batch_first=True))
    result = audit(model, x, squared)
    assert [t.weight for t in result.through_time] == ["rnn.weight_hh_l0", "rnn.weight_hh_l1"]
    # at its state h; what a norm of a state near zero adds at the first input is not in it
    assert 0.1 < result.through_time[0].growth / truth(model, x) < 10
    model = Reader(IndRNN(4, 16, batch_first=True, bound=2.0))
    with torch.no_grad():
        model.rnn.layers[0].weight_hh.fill_(1.6)
    result = audit(model, x)
    assert result.through_time[0].weight == "rnn.layers.0.weight_hh"
    assert "explodes through time" in result.off["rnn.layers.0.weight_hh"]


def test_a_fused_module_called_step_by_step_and_in_pieces():
    def steps(m, x):
        state = None
        for part in x.split(m.length, 1):
            output, state = m.rnn(part, state)
        return m.head(output[:, -1])

    model = Net(steps, rnn=scaled(nn.GRU(4, 8, batch_first=True), 2), head=nn.Linear(8, 3))
    x = torch.randn(3, 12, 4)
    model.length = 1
    (row,) = audit(model, x).through_time
    assert row.weight == "rnn.weight_hh_l0" and row.steps == 12
    model.length = 4
    result = audit(model, x)
    assert result.through_time[0].steps == 4
    assert result.notes[0] == "rnn.weight_hh_l0: called 3 times, measured in the last call alone"


def test_separate_sequences_are_not_one():
    model = Net(lambda m, x: m.loop(x) + m.loop(x.flip(1)), loop=Loop(nn.GRUCell(4, 8)))
    (row,) = audit(model, torch.randn(3, 12, 4)).through_time
    assert row.steps == 12


def test_a_scale_beside_a_recurrent_matrix_is_no_recurrence_of_its_own():
    def loop(m, x):
        h = x.new_zeros(x.shape[0], 8)
        for step in x.unbind(1):
            h = m.scale * torch.tanh(m.inner(step) + m.outer(h))
        return m.head(h)

    scale = nn.Parameter(torch.ones(8))
    model = Net(loop, inner=nn.Linear(4, 8), outer=nn.Linear(8, 8), head=nn.Linear(8, 2), scale=scale)
    assert [t.weight for t in audit(model, torch.randn(3, 12, 4)).through_time] == ["outer.weight"]


def test_frozen_parts_are_told_not_nan():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    result = audit(model, torch.randn(4, 4))
    assert "nan" not in str(result) and "gradient not measured back" in str(result)
    assert any(n.startswith("no gradient at 0.weight: frozen") for n in result.notes)
    deep = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    deep[0].requires_grad_(False)
    result = audit(deep, torch.randn(4, 4))
    assert math.isfinite(result.gradient_growth) and any("0.weight" in n for n in result.notes)
    rnn = Reader(nn.LSTM(4, 8, batch_first=True))
    rnn.rnn.requires_grad_(False)
    result = audit(rnn, torch.randn(3, 9, 4))
    assert "nan" not in str(result) and result.through_time[0].alone > 0
    assert any(
        "rnn.weight_hh_l0: growth of the loss gradient through time not measured" in n for n in result.notes
    )
    loop = Loop(nn.GRUCell(4, 8))
    loop.cell.requires_grad_(False)
    result = audit(loop, torch.randn(3, 9, 4))
    assert "nan" not in str(result) and any("cell.weight_hh: growth" in n for n in result.notes)


def test_non_finite_weights_and_inputs():
    model, x = Reader(nn.LSTM(4, 8, 2, batch_first=True), "h_n"), torch.randn(3, 9, 4)
    assert "nor is its input" in audit(model, x * math.nan).off["rnn.weight_hh_l0"]
    assert "standardise" in audit(model, 100 * x).off["rnn.weight_hh_l0"]
    with torch.no_grad():
        model.rnn.weight_hh_l1[0, 0] = math.nan
    result = audit(model, x)
    assert result.off["rnn.weight_hh_l1"] == "its output is not finite, its input is"
    assert "nan" not in str(result).replace("nan:", "")
    assert audit(Reader(nn.GRU(4, 8, batch_first=True)), torch.zeros(0, 9, 4)).through_time[0].steps == 9


def test_leaves_no_trace_and_repeats():
    for rnn in (nn.LSTM(4, 8, 2, dropout=0.5, batch_first=True), nn.GRU(4, 8, batch_first=True).eval()):
        model, x = Reader(rnn), torch.randn(3, 9, 4)
        kept, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        flags = torch.backends.cudnn.enabled
        assert str(audit(model, x)) == str(audit(model, x))
        assert torch.equal(rng, torch.get_rng_state()) and torch.backends.cudnn.enabled == flags
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_half_precision_and_autocast():
    model, x = Reader(nn.LSTM(4, 8, batch_first=True)), torch.randn(3, 9, 4)
    whole = audit(model, x, squared).through_time[0]
    half = audit(copy.deepcopy(model).bfloat16(), x.bfloat16(), squared).through_time[0]
    assert half.growth == pytest.approx(whole.growth, rel=0.3)

    def cast(m, x):
        with torch.autocast("cpu", torch.bfloat16):
            return m.head(m.rnn(m.stem(x))[0][:, -1]).float()

    mixed = Net(cast, stem=nn.Linear(4, 4), rnn=model.rnn, head=model.head)
    assert audit(mixed, x, squared).through_time[0].growth > 0
