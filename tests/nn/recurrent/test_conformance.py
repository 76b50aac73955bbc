"""Every recurrent layer keeps the call of nn.RNN and one contract: a suite over the table in layers.py."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nn.recurrent.layers import LAYERS, array

over = pytest.mark.parametrize("case", LAYERS, ids=lambda c: c.name)
over_stacks = pytest.mark.parametrize("case", [c for c in LAYERS if c.stacks], ids=lambda c: c.name)

STATES = {"lru": torch.complex64, "antisymmetric": torch.float32}  # others: the dtype of the input
SETTINGS = [
    {},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
]


def built(case, *sizes, **settings):
    """With parameters drawn anew, because those at the start hide mistakes: biases are 0."""
    module = case.make(*sizes, **settings)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.uniform_(-0.3, 0.3)
            if name.endswith("weight_hh_raw"):
                p.add_(torch.randn_like(p) * 0.1)
    return module


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@over
def test_shapes_are_those_of_torchs_rnn(case, settings):
    if not case.stacks and settings.keys() & {"num_layers", "dropout"}:
        pytest.skip("has one layer")
    ours, torchs = case.make(3, 6, **settings), nn.RNN(3, 6, **settings)
    for shape in ((5, 4, 3), (1, 1, 3), (5, 3)):
        x = torch.randn(shape)
        for a, b in zip(ours(x), torchs(x), strict=True):
            assert a.shape == b.shape
        hx = torch.randn_like(torchs(x)[1])
        for a, b in zip(ours(x, hx), torchs(x, hx), strict=True):
            assert a.shape == b.shape


@over
def test_flatten_parameters_may_be_called(case):
    module, x = built(case, 3, 4), torch.randn(5, 2, 3)
    before = [t.clone() for t in module(x)]
    assert module.flatten_parameters() is None
    assert all(torch.equal(a, b) for a, b in zip(module(x), before, strict=True))


@over
def test_agrees_with_a_plain_loop_in_float64(case):
    module = built(case, 3, 5, dtype=torch.float64)
    x, h_0 = torch.randn(11, 3, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    h_0 = h_0 + 0.3j if case.name == "lru" else h_0
    output, h_n = module(x, h_0)
    step, h, outputs = case.step(module.layers[0]), array(h_0)[0], []
    for u in array(x):
        y, h = step(u, h)
        outputs.append(y)
    np.testing.assert_allclose(array(output), np.array(outputs), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(array(h_n)[0], h, rtol=1e-11, atol=1e-12)


@over_stacks
def test_layers_and_directions_are_composed_as_they_should(case):
    module = built(case, 3, 4, num_layers=2, bidirectional=True)
    x, hx = torch.randn(6, 2, 3), torch.randn(4, 2, 4)
    output, h_n = module(x, hx)
    below = x
    for i in (0, 2):
        forth, _ = module.layers[i](below, hx[i])
        back, _ = module.layers[i + 1](below.flip(0), hx[i + 1])
        close(h_n[i], forth[-1])
        close(h_n[i + 1], back[-1])
        below = torch.cat([forth, back.flip(0)], -1)
    close(output, below)


@over
def test_batch_first_and_unbatched_say_the_same(case):
    module = built(case, 3, 4, bidirectional=True)
    first = case.make(3, 4, bidirectional=True, batch_first=True)
    first.load_state_dict(module.state_dict())
    x = torch.randn(6, 2, 3)
    output, h_n = module(x)
    turned, h_turned = first(x.transpose(0, 1))
    close(turned.transpose(0, 1), output)
    close(h_turned, h_n)
    alone, h_alone = module(x[:, 1])
    close(alone, output[:, 1])
    close(h_alone, h_n[:, 1])


@over
def test_a_sequence_in_two_halves_is_the_whole(case):
    module = built(case, 3, 4)
    x = torch.randn(9, 2, 3)
    whole, h_n = module(x)
    first, h = module(x[:4])
    second, h = module(x[4:], h)
    close(torch.cat([first, second]), whole)
    close(h, h_n)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [(5, 3, 1), (2, 5, 5, 1)], ids=str)
@over
def test_packed_sequences_are_each_sequence_alone(case, lengths, bidirectional):
    module = built(case, 3, 4, bidirectional=bidirectional, **({"num_layers": 2} if case.stacks else {}))
    sequences = [torch.randn(n, 3) for n in lengths]
    sorted_already = list(lengths) == sorted(lengths, reverse=True)
    packed = pack_sequence(sequences, enforce_sorted=sorted_already)
    _, like = module(torch.zeros(1, len(lengths), 3))
    hx = torch.randn_like(like)
    output, h_n = module(packed, hx)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    padded, given = pad_packed_sequence(output)
    assert given.tolist() == list(lengths)
    for i, sequence in enumerate(sequences):
        alone, h_alone = module(sequence[:, None], hx[:, i : i + 1])
        close(padded[: len(sequence), i], alone[:, 0])
        close(h_n[:, i], h_alone[:, 0])
    output, _ = module(packed)
    close(pad_packed_sequence(output)[0][:1, :1], module(sequences[0][:, None])[0][:1])


@over
def test_padding_plays_no_part(case):
    module = built(case, 3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3)
    x[3:, 1] = math.nan
    output, h_n = module(pack_padded_sequence(x, torch.tensor([5, 3])))
    assert pad_packed_sequence(output)[0].isfinite().all() and h_n.isfinite().all()


@over
def test_gradients_stay_in_their_bound_over_500_steps(case):
    module = case.make(3, 32)
    module.layers[0].requires_grad_(False)
    if case.name == "independent":
        module.layers[0].weight_hh.fill_(module.bound)
    _, like = module(torch.zeros(1, 1, 3))
    h_0 = torch.randn_like(like).requires_grad_()
    _, h_n = module(torch.randn(500, 1, 3), h_0)
    above = torch.randn_like(h_n)
    (below,) = torch.autograd.grad(h_n, h_0, above)
    growth = (below.norm() / above.norm()).item()
    low, high = case.growth
    assert low <= growth <= high * (1 + 1e-3)


@over
def test_gradients_of_every_parameter(case):
    module = built(case, 2, 3, dtype=torch.float64, **({"num_layers": 2} if case.stacks else {}))
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    names, params = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        output, h_n = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return output, torch.view_as_real(h_n) if h_n.is_complex() else h_n

    assert torch.autograd.gradcheck(run, (x, *params), atol=1e-6)
    output, _ = module(x)
    output.sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


@over
def test_copies_and_state(case):
    module = built(case, 3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3)
    module(x)[0].sum().backward()
    before = [t.clone() for t in module(x)]
    other = case.make(3, 4, bidirectional=True)
    other.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert repr(twin) == repr(module)
        assert all(torch.equal(a, b) for a, b in zip(twin(x), before, strict=True))
        assert all(
            torch.equal(a, b)
            for a, b in zip(twin.state_dict().values(), module.state_dict().values(), strict=True)
        )
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(module(x), before, strict=True))


@over
def test_reset_parameters_draws_anew(case):
    module = case.make(3, 4)
    torch.manual_seed(5)
    module.reset_parameters()
    first = {k: v.clone() for k, v in module.state_dict().items()}
    module.reset_parameters()
    assert any(not torch.equal(v, first[k]) for k, v in module.state_dict().items())
    torch.manual_seed(5)
    module.reset_parameters()
    assert all(torch.equal(v, first[k]) for k, v in module.state_dict().items())


@over
def test_a_nan_stays_in_its_sequence_and_after_its_step(case):
    module = built(case, 3, 4)
    x = torch.randn(6, 3, 3)
    clean, _ = module(x)
    x[2, 1] = math.nan
    output, h_n = module(x)
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]]) and torch.equal(output[:2], clean[:2])
    assert output[2:, 1].isnan().all() and h_n[:, 1].isnan().all()


@over
def test_infinity_leaves_the_other_sequences_alone(case):
    module = built(case, 3, 4)
    x = torch.randn(6, 3, 3)
    clean, _ = module(x)
    x[2, 1, 0] = math.inf
    output, _ = module(x)
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]]) and torch.equal(output[:2], clean[:2])
    assert output[2:, 1].isfinite().all() == case.name.startswith(("antisymmetric", "orthogonal_tanh"))


@over
def test_empty(case):
    module = built(case, 3, 4)
    _, like = module(torch.zeros(1, 2, 3))
    hx = torch.randn_like(like)
    output, h_n = module(torch.zeros(0, 2, 3), hx)
    assert output.shape == (0, 2, 4) and torch.equal(h_n, hx)
    output, h_n = module(torch.zeros(5, 0, 3))
    assert output.shape == (5, 0, 4) and h_n.shape == (1, 0, 4)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
@over
def test_half_precision(case, dtype, rtol):
    module = built(case, 3, 4)
    x = torch.randn(8, 2, 3)
    expected, _ = module(x)
    half = copy.deepcopy(module).to(dtype)
    output, h_n = half(x.to(dtype))
    assert output.dtype == dtype and h_n.dtype == STATES.get(case.name.partition("_")[0], dtype)
    assert (output.float() - expected).norm() < rtol * expected.norm()
    output.float().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in half.parameters())


@over
def test_built_in_a_dtype_and_for_a_device(case):
    half = case.make(3, 4, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(torch.randn(2, 1, 3, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


@over
def test_autocast(case):
    module = built(case, 3, 4)
    x = torch.randn(8, 2, 3)
    expected, _ = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = module(x)
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


@over
def test_compiles_without_a_graph_break(case):
    torch._dynamo.reset()
    module = built(case, 3, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 3)
    module(x)[0].square().sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    output, h_n = compiled(x)
    output.square().sum().backward()
    close([p.grad for p in module.parameters()], expected)


class NoHostRead(TorchDispatchMode):
    """Fails when a number leaves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"host read: {func}")
        return func(*args, **(kwargs or {}))


@over
def test_no_host_sync(case):
    module = built(case, 3, 4)
    with NoHostRead():
        output, _ = module(torch.randn(5, 2, 3))
        output.sum().backward()


@over_stacks
def test_dropout_acts_between_layers_in_training_only(case):
    module = built(case, 3, 4, num_layers=2, dropout=1.0)
    x = torch.randn(5, 2, 3)
    ignored, _ = module(x)
    close(ignored[:, 0], ignored[:, 1])  # the second layer sees zeros
    module.eval()
    plain, _ = module(x)
    close(plain, module.layers[1](module.layers[0](x, torch.zeros(2, 4))[0], torch.zeros(2, 4))[0])
    with pytest.warns(UserWarning, match="dropout 0.5 acts between layers, and there is only one"):
        case.make(3, 4, dropout=0.5)


@over_stacks
def test_without_biases(case):
    module = case.make(3, 4, bias=False)
    assert not [n for n, p in module.named_parameters() if n.endswith("bias") and p.requires_grad]
    output, _ = module(torch.zeros(5, 2, 3))
    assert torch.equal(output, torch.zeros(5, 2, 4))


@over
def test_text_says_what_it_is(case):
    text = repr(case.make(3, 4, batch_first=True))
    assert "3, 4, batch_first=True" in text and "bidirectional" not in text.split("layers")[0]


@over
def test_bad_input(case):
    module = case.make(3, 4)
    for call, message in (
        (
            lambda: module(torch.zeros(5, 2, 4)),
            r"input must have 3 features in its last dimension, got shape \(5, 2, 4\)",
        ),
        (
            lambda: module(pack_sequence([torch.zeros(5, 4)])),
            r"input must have 3 features in its last dimension, got shape \(5, 4\)",
        ),
        (lambda: module(torch.zeros(3)), r"2 or 3 dimensions or a PackedSequence, got shape \(3,\)"),
        (lambda: module([torch.zeros(5, 2, 3)]), "a PackedSequence, got list"),
        (lambda: module(torch.zeros(5, 2, 3), torch.zeros(1, 3, 4)), r"= \(1, 2, 4\), got \(1, 3, 4\)"),
        (lambda: case.make(0, 4), "input_size must be at least 1, got 0"),
        (lambda: case.make(3, 0), "hidden_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="hidden_size must be a whole number, got float"):
        case.make(3, 4.0)
    if case.stacks:
        with pytest.raises(ValueError, match="dropout must be between 0 and 1, got 1.5"):
            case.make(3, 4, dropout=1.5)
        with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
            case.make(3, 4, num_layers=0)
