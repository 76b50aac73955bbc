"""Residual blocks put into a Sequential: the equation, what is kept, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.nn.activations import SquaredReLU
from steadygrad.recipes import edits


def changed(model, width=edits.linear_width, norm=edits.layer_norm_for, dropout=0.0):
    todo = edits.Edits(model)
    edits.add_residuals(todo, width, norm, dropout)
    return todo


def test_the_equation():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    stem, _, first, _, second, _, head = model
    changed(model)
    x = torch.randn(5, 3)
    h = stem(x).tanh()
    for weight in (first, second):
        h = h + weight(F.layer_norm(h, (4,)).tanh())
    torch.testing.assert_close(model(x), head(F.layer_norm(h, (4,)).tanh()))


def test_convolutions_with_their_norms_and_dropout():
    norms = [nn.BatchNorm2d(4) for _ in range(2)]
    convs = [nn.Conv2d(4, 4, 3, padding="same") for _ in range(2)]
    model = nn.Sequential(
        *(m for c, n in zip(convs, norms, strict=True) for m in (c, n, nn.ReLU(), nn.Dropout2d(0.3)))
    )
    todo = changed(model, edits.conv_width, edits.batch_norm_for, None)
    assert [b.dropout.p for b in list(model)[:2]] == [0.3, 0.3]
    assert [b.fn[0] for b in list(model)[:2]] == norms and [b.fn[2] for b in list(model)[:2]] == convs
    assert isinstance(model[2], nn.BatchNorm2d) and model[2] is not norms[1]
    assert len(todo.changes) == 1 and "2 layers" in todo.changes[0]
    model.eval()
    x = torch.randn(2, 4, 5, 5)
    h = x
    for norm, conv in zip(norms, convs, strict=True):
        h = h + conv(norm(h).relu())
    torch.testing.assert_close(model(x), model[2](h).relu())


def test_undo_gives_the_same_tree_and_function():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    shape, x = str(model), torch.randn(2, 4)
    before = model(x)
    todo = changed(model)
    assert str(model) != shape
    todo.undo()
    assert str(model) == shape and torch.equal(model(x), before)


LEFT = {
    "one layer": [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)],
    "no activation": [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)],
    "other widths": [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU()],
    "softmax": [nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4), nn.Softmax(-1)],
    "widths change": [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()],
}


@pytest.mark.parametrize("layers", LEFT.values(), ids=LEFT)
def test_left_alone(layers):
    model = nn.Sequential(*layers)
    assert changed(model).changes == [] and list(model) == layers


def test_two_rows_of_different_width_and_named_children():
    layers = {
        f"{kind}{i}": m
        for i, w in enumerate((4, 4, 5))
        for kind, m in (("fc", nn.Linear(w, w)), ("act", SquaredReLU()))
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        if name == "fc2":
            model.add_module("up", nn.Linear(4, 5))
        model.add_module(name, layer)
    model.add_module("fc3", nn.Linear(5, 5))
    model.add_module("act3", nn.ReLU())
    changed(model)
    names = [n for n, _ in model.named_children()]
    assert names == ["fc0", "fc1", "fc1_norm", "fc1_act", "up", "fc2", "fc3", "fc3_norm", "fc3_act"]
    assert model(torch.randn(2, 4)).shape == (2, 5)


@pytest.mark.parametrize(
    ("conv", "width"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 4),
        (nn.Conv1d(4, 4, 5, padding=4, dilation=2), 4),
        (nn.Conv3d(2, 2, 1), 2),
        (nn.Conv2d(4, 4, 3), None),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), None),
        (nn.Conv2d(4, 8, 3, padding=1), None),
        (nn.Conv2d(4, 4, 3, padding="valid"), None),
        (nn.Conv2d(4, 4, 4, padding="same"), 4),
        (nn.Linear(4, 4), None),
    ],
)
def test_which_convolutions_keep_the_shape(conv, width):
    assert edits.conv_width(conv) == width


def test_norms_first_and_a_last_norm():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    todo = edits.Edits(model)
    edits.norm_first(todo)
    wanted = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True),
        2,
        nn.LayerNorm(8),
        enable_nested_tensor=False,
    )
    wanted.load_state_dict(model.state_dict())
    x = torch.randn(3, 2, 8)
    torch.testing.assert_close(model(x), wanted(x))
    todo.undo()
    assert model.norm is None and not model.layers[0].norm_first
