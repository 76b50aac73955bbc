"""`sg.locate`: one step, and everything as it was."""

from __future__ import annotations

import importlib
import random

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.locating import locate


def everything(model, optimizer):
    state = [t.clone() for t in model.state_dict().values()]
    inner = [v.clone() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    grads = [p.grad for p in model.parameters()]
    return [*state, *inner, torch.get_rng_state()], grads, [g.clone() for g in grads], random.getstate()


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(6, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("fault", ["none", "loss", "raises"])
def test_everything_is_put_back(fault):
    model, optimizer = trained()
    tensors, grads, values, python = everything(model, optimizer)

    def loss_fn(m, x):
        random.random()
        out = m(x + torch.randn_like(x))
        if fault == "raises":
            raise KeyError("mine")
        return ((out * 0).log() if fault == "loss" else out).mean()

    if fault == "raises":
        with pytest.raises(KeyError, match="mine"):
            locate(model, loss_fn, torch.ones(6, 3), optimizer)
    else:
        found = locate(model, loss_fn, torch.ones(6, 3), optimizer)
        assert (found is None) == (fault == "none")
    after = everything(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after[0], strict=True))
    assert all(a is b for a, b in zip(grads, after[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, after[2], strict=True))
    assert python == after[3]


def test_the_optimizer_is_looked_into():
    model = nn.Linear(3, 1).half()
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.zeros(4, 3).half()
    assert locate(model, lambda m, b: (m(b) * 0).mean(), x) is None
    assert locate(model, lambda m, b: (m(b) * 0).mean(), x, optimizer).kind == "optimizer"
    assert len(optimizer.state) == 0


def test_the_room_and_the_function_do_not_hide_each_other():
    importlib.import_module("steadygrad.locating")
    found = sg.locate(nn.Linear(2, 1), lambda m, x: (m(x) * 0).log().mean(), torch.ones(3, 2))
    assert found.op == "log"
