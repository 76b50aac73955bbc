"""Truncated backpropagation: chunks, nested states, and gradients that reach exactly as far back as they should."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from steadygrad.nn.recurrent import LRU, detach, tbptt

Pair = namedtuple("Pair", "h c")


@dataclasses.dataclass(frozen=True)
class Cache:
    keys: torch.Tensor
    length: int


def grads_of(module):
    return [p.grad.clone() for p in module.parameters()]


def chunked(rnn, x, k1, **settings):
    """Gradients summed over all chunks, and where each began and ended."""
    rnn.zero_grad()
    ends, last = [], None
    for chunk in tbptt(x, k1, **settings):
        output, chunk.state = rnn(chunk.inputs, chunk.state)
        output.square().sum().backward()
        ends.append((chunk.start, chunk.stop))
        last = chunk.state
    return grads_of(rnn), ends, last


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, LRU])
def test_one_chunk_as_long_as_the_sequence_is_full_backpropagation(make):
    rnn, x = make(3, 4), torch.randn(12, 2, 3)
    rnn(x)[0].square().sum().backward()
    full = grads_of(rnn)
    for k1 in (12, 100):
        got, ends, _ = chunked(rnn, x, k1)
        assert ends == [(0, 12)]
        assert all(torch.equal(a, b) for a, b in zip(got, full, strict=True))


@pytest.mark.parametrize(
    ("k1", "ends"), [(4, [(0, 4), (4, 8), (8, 10)]), (1, [(i, i + 1) for i in range(10)])]
)
def test_chunks_are_the_sum_of_what_each_gives_by_hand(k1, ends):
    rnn, x = nn.LSTM(3, 4), torch.randn(10, 2, 3)
    got, seen, last = chunked(rnn, x, k1)
    assert seen == ends
    total, state = [torch.zeros_like(p) for p in rnn.parameters()], None
    for start, stop in ends:
        output, state = rnn(x[start:stop], state)
        for sum_, g in zip(
            total, torch.autograd.grad(output.square().sum(), list(rnn.parameters())), strict=True
        ):
            sum_ += g
        state = tuple(s.detach() for s in state)
    torch.testing.assert_close(got, total)
    torch.testing.assert_close(
        tuple(s.detach() for s in last), rnn(x)[1]
    )  # the state itself is not truncated
    full = torch.autograd.grad(rnn(x)[0].square().sum(), rnn.weight_hh_l0)[0]
    assert (got[1] - full).norm() > 1e-4 * full.norm()  # and the gradient is


@pytest.mark.parametrize(("k1", "k2"), [(1, 3), (2, 4), (3, 9), (2, 2)])
def test_a_gradient_reaches_back_k2_steps(k1, k2):
    """A unit that only adds up: dloss/dx_t is 1 for as many chunks' losses as reach to step t."""
    x = torch.zeros(13, 1, requires_grad=True)
    for chunk in tbptt(x, k1, torch.zeros(1), k2=k2, replay=lambda part, s: s + part.sum(0)):
        chunk.state = chunk.state + chunk.inputs.sum(0)
        chunk.state.sum().backward()
    expected = [sum(s + k1 - k2 <= t < s + k1 for s in range(0, 13, k1)) for t in range(13)]
    assert x.grad.flatten().tolist() == expected


def test_k2_by_hand_with_steps_of_the_optimizer_in_between():
    x, losses = torch.randn(12, 2, 3), {}
    for way in ("tbptt", "hand"):
        torch.manual_seed(3)
        rnn = nn.GRU(3, 4)
        optimizer = torch.optim.SGD(rnn.parameters(), lr=0.3)
        losses[way] = []

        def learn(output, way=way, optimizer=optimizer):
            loss = output.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[way].append(loss.item())

        if way == "tbptt":
            for chunk in tbptt(x, 2, k2=6, replay=lambda part, s, rnn=rnn: rnn(part, s)[1]):
                output, chunk.state = rnn(chunk.inputs, chunk.state)
                learn(output)
            continue
        states = {0: None}  # as they were when first reached
        for start in range(0, 12, 2):
            back = max(0, start - 4)
            output, _ = rnn(x[back : start + 2], states[back])
            middle = rnn(
                x[start : start + 2], rnn(x[back:start], states[back])[1] if start > back else states[back]
            )[1]
            states[start + 2] = middle.detach()
            learn(output[start - back :])
    assert losses["tbptt"] == pytest.approx(losses["hand"], rel=1e-5)
    assert len(losses["hand"]) == 6


def test_memory_does_not_grow_with_the_sequence():
    """Behind each chunk the state has no graph, and the inputs are views."""
    rnn, x = nn.RNN(3, 4), torch.randn(20, 2, 3)
    previous = None
    for chunk in tbptt(x, 5):
        assert chunk.state is None if previous is None else torch.equal(chunk.state, previous)
        assert chunk.state is None or not chunk.state.requires_grad
        assert chunk.inputs.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        _, chunk.state = rnn(chunk.inputs, chunk.state)
        assert chunk.state.requires_grad
        previous = chunk.state.detach()


def test_nested_inputs_and_the_dimension_of_time():
    x, y = torch.arange(14).view(2, 7), torch.arange(28).view(2, 7, 2)
    parts = list(tbptt({"x": x, "more": [(y, None)]}, 3, dim=1))
    assert [(c.start, c.stop) for c in parts] == [(0, 3), (3, 6), (6, 7)]
    assert torch.equal(parts[1].inputs["x"], x[:, 3:6]) and torch.equal(
        parts[2].inputs["more"][0][0], y[:, 6:]
    )
    assert parts[0].inputs["more"][0][1] is None
    assert list(tbptt(torch.zeros(0, 3), 5)) == []


def test_a_state_left_alone_is_passed_on_and_a_change_of_kind_is_fine():
    start = torch.ones(2, requires_grad=True) * 2
    states = []
    for chunk in tbptt(torch.zeros(6), 2, start):
        states.append(chunk.state)
        if chunk.start == 2:
            chunk.state = {"new": chunk.state * 3, "old": None}
    assert torch.equal(states[0], start) and not states[0].requires_grad
    assert (
        torch.equal(states[1], start) and states[2]["new"].tolist() == [6.0, 6.0] and states[2]["old"] is None
    )


def test_a_nan_is_handed_on():
    for chunk in tbptt(torch.zeros(4), 2):
        if chunk.start == 0:
            chunk.state = torch.tensor(math.nan)
        else:
            assert chunk.state.isnan()


def test_detach_keeps_the_structure():
    def t():
        return torch.ones(2, requires_grad=True) * 2

    state = {
        "tuple": (t(), None),
        "named": Pair(t(), t()),
        "list": [t(), [t()]],
        "ordered": OrderedDict(a=t(), b=3),
        "cache": Cache(t(), 7),
        "plain": (1, 2.5, "x", True, ()),
    }
    cut = detach(state)
    assert type(cut["named"]) is Pair and type(cut["ordered"]) is OrderedDict and type(cut["cache"]) is Cache
    assert cut["plain"] == state["plain"] and cut["tuple"][1] is None and cut["cache"].length == 7
    found = [
        cut["tuple"][0],
        *cut["named"],
        cut["list"][0],
        cut["list"][1][0],
        cut["ordered"]["a"],
        cut["cache"].keys,
    ]
    assert len(found) == 7 and not any(v.requires_grad for v in found)
    assert state["tuple"][0].requires_grad  # the original is not changed
    assert cut["tuple"][0].data_ptr() == state["tuple"][0].data_ptr()
    assert detach(None) is None and detach(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: tbptt(x, 0), ValueError, "k1 must be at least 1, got 0"),
        (lambda x: tbptt(x, 2.0), TypeError, "k1 must be a whole number, got float"),
        (lambda x: tbptt(x, 4, k2=6), ValueError, "k2 must be a multiple of k1, got k1=4, k2=6"),
        (lambda x: tbptt(x, 4, k2=2), ValueError, "k2 must be a multiple of k1, got k1=4, k2=2"),
        (lambda x: tbptt(x, 2, k2=4), ValueError, "give replay"),
        (lambda x: tbptt((x, x[:3]), 2), ValueError, r"one length along dim 0, got \[3, 6\]"),
        (lambda x: tbptt(None, 2), ValueError, "got no tensor"),
        (lambda x: tbptt(x, 2, dim=2), ValueError, "dim 2 is not in a tensor of inputs of shape"),
        (lambda x: tbptt(pack_sequence([x]), 2), TypeError, "holds a PackedSequence.*pad_packed_sequence"),
        (lambda x: tbptt(x, 2, {1, 2}), TypeError, "state holds a set, which may hide tensors"),
        (lambda x: detach(object()), TypeError, "state holds a object"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(6, 3))
