"""Norms and skips as graphs show them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.graph.structure import read_structure
from steadygrad.graph.walk import Graph
from steadygrad.graph.weights import find_uses


def structure(model, x=None, cast=False):
    x = torch.randn(2, 5, 8) if x is None else x
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        graph = Graph([model(x).float().sum()])
    return tuple(read_structure(graph, find_uses(graph)))


def encoder(depth, pre, **more):
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=pre, batch_first=True, **more)
    return nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, depth, enable_nested_tensor=False))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("cast", [False, True])
def test_transformers(dropout, cast):
    assert structure(encoder(3, True, dropout=dropout), cast=cast) == (6, 0, 6)
    assert structure(encoder(3, False, dropout=dropout), cast=cast) == (6, 6, 6)
    with_last = nn.Sequential(encoder(3, True), nn.LayerNorm(8))
    assert structure(with_last) == (7, 1, 6)


class Block(nn.Module):
    def __init__(self, body, join):
        super().__init__()
        self.body, self.join = body, join

    def forward(self, x):
        return self.join(x, self.body(x))


def conv():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    )


def test_residual_blocks():
    stem = nn.Conv2d(4, 4, 1)
    net = nn.Sequential(stem, *(Block(conv(), lambda x, y: F.relu(x + y)) for _ in range(3)))
    assert structure(net, torch.randn(2, 4, 5, 5)) == (3, 0, 3)


class Inplace(Block):
    def forward(self, x):
        y = self.body(x)
        y += x
        return y


def test_a_sum_in_place_is_a_skip():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), Inplace(conv(), None))
    assert structure(net, torch.randn(2, 4, 5, 5))[2] == 1


def test_projected_shortcuts_are_two_branches():
    net = nn.Sequential(nn.Linear(8, 8), Block(nn.Linear(8, 8), None))
    net[1].join, shortcut = (lambda x, y: shortcut(x) + y), nn.Linear(8, 8)
    assert structure(net)[2] == 0


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * (i + 1), 4) for i in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], -1)
        return x


def gelu_by_hand(x):
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))


class Handmade(nn.Module):
    def forward(self, x):
        return gelu_by_hand(x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 4), Dense()),
        nn.Sequential(nn.Linear(8, 8), Handmade(), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8), Block(nn.Identity(), lambda x, y: x + y)),
    ],
    ids=["plain", "concatenations", "a polynomial", "twice itself"],
)
def test_what_is_no_skip(net):
    assert structure(net) == (0, 0, 0)


def test_the_steps_of_a_recurrence_are_no_skips():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(8, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    assert structure(nn.Sequential(nn.Linear(8, 8), Net()), torch.randn(2, 40, 8))[2] == 0


@pytest.mark.parametrize("norm", [nn.GroupNorm(5, 5), nn.InstanceNorm1d(5, affine=True), nn.BatchNorm1d(5)])
def test_other_norms(norm):
    assert structure(nn.Sequential(nn.Linear(8, 8), norm)) == (1, 0, 0)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        a, b = x.chunk(2, -1)
        return (self.layer(a) + b) * b


def test_halves_of_a_value_are_two_values():
    assert structure(nn.Sequential(nn.Linear(8, 8), Gated()))[2] == 0
