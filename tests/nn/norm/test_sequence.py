"""The call of nn.LSTM and nn.GRU: with the norms taken out, the layers are torch's own, packed or not."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from steadygrad.init import forget_bias_, orthogonal_recurrent_
from steadygrad.nn.norm import (
    BatchNormLSTM,
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
)
from steadygrad.nn.norm._sequence import turned


class PlainLSTM(LayerNormLSTM):
    def _norm(self, x, gain, bias):
        return x * gain if bias is None else x * gain + bias


class PlainGRU(LayerNormGRU):
    def _norm(self, x, gain, bias):
        return x * gain if bias is None else x * gain + bias


class PlainLSTMCell(LayerNormLSTMCell):
    _norm = PlainLSTM._norm


class PlainGRUCell(LayerNormGRUCell):
    _norm = PlainLSTM._norm


def plain_batch_norm_lstm(*args, **settings):
    """Running statistics that do nothing: mean 0, var + eps = 1."""
    layer = BatchNormLSTM(*args, **settings, max_length=2, gain_init=1.0).eval()
    for name, buffer in layer.named_buffers():
        if name.startswith("running_var"):
            buffer.fill_(1 - layer.eps)
    return layer


PAIRS = {"lstm": (PlainLSTM, nn.LSTM), "gru": (PlainGRU, nn.GRU), "bn_lstm": (plain_batch_norm_lstm, nn.LSTM)}
SETTINGS = {
    "plain": {},
    "deep": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False, "bidirectional": True},
    "batch_first": {"batch_first": True, "num_layers": 2},
    "double": {"dtype": torch.float64},
    "projected": {"proj_size": 2, "num_layers": 2, "bidirectional": True},
}


def pair(kind, **settings):
    torch.manual_seed(0)
    ours, theirs = (make(3, 4, **settings) for make in PAIRS[kind])
    theirs.eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected and all("norm_" in n or "running" in n or "tracked" in n for n in missing)
    return ours, theirs


def tensors(value):
    """All tensors in nested tuples, in order; of a packed sequence its four."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value if part is not None for t in tensors(part)]


def assert_same_call(ours, theirs, make_input, hx=None):
    """Outputs, last states, and the gradients of input, state and parameters."""
    results = []
    for layer in (ours, theirs):
        leaves, input = make_input()
        given = hx
        if hx is not None:
            copies = [t.clone().requires_grad_() for t in tensors(hx)]
            leaves = [*leaves, *copies]
            given = tuple(copies) if isinstance(hx, tuple) else copies[0]
        layer.zero_grad()
        result = layer(input, given)
        floats = [t for t in tensors(result) if t.is_floating_point()]
        sum((t * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in floats).backward()
        grads = {n: p.grad for n, p in layer.named_parameters() if "norm_" not in n}
        results.append((result, [x.grad for x in leaves], grads))
    (a, a_leaves, a_grads), (b, b_leaves, b_grads) = results
    assert type(a[0]) is type(b[0])
    torch.testing.assert_close(tensors(a), tensors(b), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a_leaves, b_leaves, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a_grads, b_grads, rtol=1e-4, atol=1e-5)


def hidden(kind, layer, batch=None, dtype=torch.float32):
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    lead = (count,) if batch is None else (count, batch)
    h = torch.randn(*lead, layer.proj_size or 4).to(dtype)
    return h if kind == "gru" else (h, torch.randn(*lead, 4).to(dtype))


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's own
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", PAIRS)
def test_without_norms_it_is_torchs(kind, settings, with_state):
    if kind == "gru" and "proj_size" in settings:
        pytest.skip("torch has projections for LSTM only")
    ours, theirs = pair(kind, **settings)
    dtype = settings.get("dtype", torch.float32)
    shape = (5, 6, 3) if ours.batch_first else (6, 5, 3)
    x = torch.randn(shape, dtype=dtype)

    def make_input():
        leaf = x.clone().requires_grad_()
        return [leaf], leaf

    assert_same_call(ours, theirs, make_input, hidden(kind, ours, 5, dtype) if with_state else None)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", PAIRS)
def test_unbatched(kind, batch_first):
    ours, theirs = pair(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(6, 3)
    for hx in (None, hidden(kind, ours)):
        assert_same_call(ours, theirs, lambda: ([], x), hx)


@pytest.mark.parametrize("lengths", [[2, 6, 3, 6, 1], [4, 4, 4], [1], [5, 4, 3, 2, 1]], ids=str)
@pytest.mark.parametrize("kind", PAIRS)
def test_packed(kind, lengths):
    ours, theirs = pair(kind, num_layers=2, bidirectional=True)
    x = torch.randn(max(lengths), len(lengths), 3)
    for ordered in {False, lengths == sorted(lengths, reverse=True)}:
        for hx in (None, hidden(kind, ours, len(lengths))):

            def make_input(ordered=ordered):
                leaf = x.clone().requires_grad_()
                return [leaf], pack_padded_sequence(leaf, lengths, enforce_sorted=ordered)

            assert_same_call(ours, theirs, make_input, hx)


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_packed_equals_each_sequence_alone(kind):
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, bidirectional=True)
    sequences = [torch.randn(n, 3) for n in (2, 5, 1, 4)]
    y, state = layer(pack_sequence(sequences, enforce_sorted=False))
    assert isinstance(y, PackedSequence)
    padded, lengths = pad_packed_sequence(y)
    assert lengths.tolist() == [2, 5, 1, 4]
    for b, sequence in enumerate(sequences):
        alone, last = layer(sequence)
        torch.testing.assert_close(padded[: len(sequence), b], alone)
        torch.testing.assert_close([s[:, b] for s in tensors(state)], tensors(last))


def test_turned_reverses_each_sequence_within_its_length():
    sequences = [torch.arange(n).unsqueeze(1) + 10 * n for n in (4, 3, 3, 1)]
    packed = pack_sequence(sequences)
    sizes = packed.batch_sizes.tolist()
    expected = pack_sequence([s.flip(0) for s in sequences]).data
    assert torch.equal(turned(packed.data, sizes), expected)
    assert torch.equal(turned(expected, sizes), packed.data)


@pytest.mark.parametrize("bias", [True, False])
def test_cells_without_norms_are_torchs(bias):
    for ours, theirs in ((PlainLSTMCell, nn.LSTMCell), (PlainGRUCell, nn.GRUCell)):
        a, b = ours(3, 4, bias=bias), theirs(3, 4, bias=bias)
        a.load_state_dict(b.state_dict(), strict=False)
        for shape in ((5, 3), (3,)):
            x = torch.randn(shape)
            h = torch.randn(*shape[:-1], 4)
            hx = h if theirs is nn.GRUCell else (h, torch.randn(*shape[:-1], 4))
            torch.testing.assert_close(a(x), b(x))
            torch.testing.assert_close(a(x, hx), b(x, hx))


@pytest.mark.parametrize(
    ("layer", "cell"), [(LayerNormLSTM, LayerNormLSTMCell), (LayerNormGRU, LayerNormGRUCell)]
)
def test_layer_is_its_cell_step_by_step(layer, cell):
    torch.manual_seed(0)
    whole, step = layer(3, 4), cell(3, 4)
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    step.load_state_dict({n.removesuffix("_l0"): t for n, t in whole.state_dict().items()})
    x, hx = torch.randn(6, 5, 3), None
    for t in range(6):
        hx = step(x[t], hx)
    torch.testing.assert_close(tensors(hx), [s[0] for s in tensors(whole(x)[1])])


def test_dropout_between_layers_only_and_in_training_only():
    torch.manual_seed(0)
    layer = LayerNormLSTM(3, 64, num_layers=2, dropout=0.5)
    x = torch.randn(4, 2, 3)
    seen = []
    original = layer._run
    layer._run = lambda x, *rest: seen.append(x.detach()) or original(x, *rest)
    y, _ = layer(x)
    assert (seen[0] == x.flatten(0, 1)).all() and 0.4 < (seen[1] == 0).float().mean() < 0.6
    assert (y != 0).all()
    layer.eval()(x)
    assert (seen[3] != 0).all()
    with pytest.warns(UserWarning, match="dropout"):
        LayerNormLSTM(3, 4, dropout=0.5)


def test_the_schemes_of_init_find_the_cells_parameters():
    cell = LayerNormLSTMCell(3, 4)
    orthogonal_recurrent_(cell)
    forget_bias_(cell)
    for block in cell.weight_hh.chunk(4):
        torch.testing.assert_close(block @ block.T, torch.eye(4))
    assert (cell.bias_ih + cell.bias_hh)[4:8].tolist() == [1.0] * 4
    assert (cell.norm_weight_c == 1).all() and (cell.norm_bias_c == 0).all()


BAD_INPUT = {
    "no time": (torch.zeros(0, 2, 3), None, "no time step"),
    "width": (torch.zeros(4, 2, 5), None, "input_size = 3.*4, 2, 5"),
    "dimensions": (torch.zeros(4), None, "got 1 dimensions"),
    "type": ([1.0], None, "got list"),
    "dtype": (torch.zeros(4, 2, 3, dtype=torch.float64), None, "float64.*float32"),
    "state": (torch.zeros(4, 2, 3), torch.zeros(1, 3, 4), "hx must have shape"),
    "unbatched state": (torch.zeros(4, 3), torch.zeros(2, 4), "hx must have shape"),
}


@pytest.mark.parametrize(("x", "hx", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused(x, hx, message):
    for layer in (LayerNormGRU(3, 4), LayerNormLSTM(3, 4), BatchNormLSTM(3, 4, max_length=2)):
        given = hx if hx is None or isinstance(layer, LayerNormGRU) else (hx, hx)
        with pytest.raises(ValueError, match=message):
            layer(x, given)


def test_bad_settings_are_refused():
    for make in (LayerNormLSTM, LayerNormGRU, LayerNormLSTMCell, LayerNormGRUCell):
        with pytest.raises(ValueError, match="hidden_size must be at least 2, got 1"):
            make(3, 1)
        with pytest.raises(ValueError, match="eps must be positive and finite, got 0"):
            make(3, 4, eps=0)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            make(3, -4)
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        LayerNormLSTMCell(3, 4)(torch.zeros(2, 5))
