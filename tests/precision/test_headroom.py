"""Which tensors of a model low precision would lose, and which scale each wants."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import math

import pytest
import torch
from torch import nn

import steadygrad as sg
import steadygrad.precision as room


class Twice(nn.Module):
    """One layer called twice, one inside torch's LSTM, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.shared = nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.shared(torch.tanh(self.shared(self.embed(tokens))))
        return self.head(self.drop(self.lstm(x)[0])[:, -1])


def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randint(7, (8, 5), generator=g), torch.randint(3, (8,), generator=g)


def test_looks_at_what_low_precision_casts():
    torch.manual_seed(0)
    found = room.headroom(Twice(), nn.CrossEntropyLoss(), batch())
    kinds = {}
    for row in found.rows:
        kinds.setdefault(row.kind, []).append(row.name)
    assert kinds["input"] == [f"input of {name}" for name in ("shared", "lstm", "head")]
    assert sorted(kinds["gradient"]) == [f"gradient at {n}" for n in ("embed", "head", "lstm", "shared")]
    assert (
        found["input of shared"].histogram.numel
        == found["gradient at shared"].histogram.numel
        == 2 * 8 * 5 * 6
    )
    assert "unused.weight" in kinds["weight"] and "gradient of unused.weight" not in kinds["weight gradient"]
    with pytest.raises(KeyError, match="no tensor 'shard'"):
        found["shard"]


def test_gradients_are_those_of_the_backward_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    x, y = torch.randn(9, 4), torch.randn(9, 2)
    found = room.headroom(model, nn.MSELoss(), (x, y))
    out = model(x)
    at = torch.autograd.grad(nn.functional.mse_loss(out, y), [out, *model.parameters()])
    assert found["gradient at 2"].histogram == room.exponent_histogram(at[0])
    for (name, _), g in zip(model.named_parameters(), at[1:], strict=True):
        assert found[f"gradient of {name}"].histogram == room.exponent_histogram(g)
    assert found["input of 2"].histogram == room.exponent_histogram(model[0](x).relu())


def test_leaves_no_trace():
    torch.manual_seed(0)
    model = Twice()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, grad = copy.deepcopy(model.state_dict()), model.head.weight.grad
    random = torch.get_rng_state()
    room.headroom(model, nn.CrossEntropyLoss(), batch())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.head.weight.grad is grad and (grad == 1).all() and model.head.bias.grad is None
    assert torch.equal(torch.get_rng_state(), random) and not model.shared._forward_hooks


def test_says_which_tensors_lose_what_and_how_to_scale_them():
    found = room.tensor_headroom(
        {
            "small": torch.tensor([1e-9, 2e-9, 3e-9, 1e-5]),
            "large": torch.tensor([1.0, 1e5]),
            "fine": torch.tensor([0.25, 1.0]),
            "broken": torch.tensor([math.nan, 1.0]),
            "nothing": torch.zeros(3),
        },
        margin=0,
    )
    assert [row.name for row in found.losing("fp16")] == ["small", "large"]
    assert [row.name for row in found.losing("fp16", share=0.8)] == ["large"]
    assert found["small"].said("fp16") == "75% to 0; x 2^32: fits" and found["small"].scale("fp16") == 2.0**32
    assert found["large"].said("fp16") == "50% over; x 2^-1: fits" and found["large"].headroom("fp16") < 0
    assert found["fine"].said("e4m3") == "fits" == found["nothing"].said("e4m3")
    assert found["nothing"].headroom("fp16") == math.inf and math.isinf(found.loss_scale())
    text = str(found)
    assert "3 more fit into every format as they are" in text and "not finite already: broken" in text
    assert "75% to 0; x 2^32: fits" in text and "fine" not in text


def test_loss_scale_is_the_largest_with_which_no_gradient_overflows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    data = torch.randn(16, 8), torch.randn(16, 1)

    def largest(scale):
        def scaled(m, b):
            return nn.functional.mse_loss(m(b[0]), b[1]) * scale

        rows = room.headroom(model, scaled, data, margin=0).rows
        return max(r.histogram.max_abs for r in rows if "gradient" in r.kind)

    scale = room.headroom(model, nn.MSELoss(), data, margin=0).loss_scale()
    assert largest(scale) <= 65504 < largest(2 * scale)
    assert f"fp16: 2^{math.log2(scale):.0f}" in str(room.headroom(model, nn.MSELoss(), data, margin=0))


def test_a_loss_that_is_not_finite_is_shown():
    model = nn.Linear(2, 1)
    found = room.headroom(model, lambda m, x: m(x).mean().log() * math.inf, torch.ones(3, 2))
    assert found["gradient of weight"].histogram.nonfinite and "not finite already" in str(found)


def test_bad_arguments():
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        room.headroom(nn.Linear, nn.MSELoss(), None)
    with pytest.raises(TypeError, match="loss_fn must be callable"):
        room.headroom(model, None, None)
    with pytest.raises(TypeError, match="scalar tensor"):
        room.headroom(model, lambda m, x: m(x), torch.ones(3, 2))
    with pytest.raises(ValueError, match="margin must be at least 0"):
        room.tensor_headroom({}, margin=-1)
    assert sg.precision is room


@pytest.mark.parametrize("name", ["headroom", "tensor_headroom"])
def test_card(name):
    method = getattr(room, name)
    text = inspect.getdoc(method)
    parts = ["When to use it:", "Values in use:", "Cost:", "Args:", "Returns:", "Example:", "Source:"]
    assert all(part in text for part in parts) and "nan" in text
    for argument in inspect.signature(method).parameters:
        assert f"{argument}: " in text.split("Args:")[1]


@pytest.mark.parametrize("module", ["formats", "histogram", "result", "measure"])
def test_examples_run(module):
    assert doctest.testmod(importlib.import_module(f"steadygrad.precision.{module}")).failed == 0
