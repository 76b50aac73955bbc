"""Infinities that were meant, or that did no harm, are nobody's fault."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.locating import Locator

X = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])


def masked_softmax(out):
    return out.masked_fill(torch.eye(4, 3) > 0, float("-inf")).softmax(1).square().mean()


def additive_mask(out):
    mask = torch.triu(torch.full((4, 3), float("-inf")), diagonal=1)
    return F.log_softmax(out + mask, 1)[:, 0].mean()


def log_of_a_mask(out):
    keep = torch.tensor([[1.0, 0.0, 1.0]])
    return (out + keep.log()).softmax(1).square().mean()


def largest_of_masked(out):
    return out.masked_fill(out < -100, float("-inf")).amax(1).mean()


def where_in_forward_only(out):
    ratio = torch.where(X > 0, X.log(), torch.zeros(()))
    return (out * ratio).mean()


def nan_replaced(out):
    data = torch.tensor([float("nan"), 1.0, 2.0])
    return (out * torch.nan_to_num(data)).mean()


def missing_labels(out):
    target = X.clone()
    target[0, 0] = float("nan")
    seen = ~torch.isnan(target)
    return (out[seen] - target[seen]).square().mean()


def best_so_far(out):
    best = torch.tensor(float("inf"))
    best = torch.minimum(best, out.detach().sum())
    return out.mean() + 0 * best


def fresh_memory(out):
    space = torch.empty(4, 3)
    space.fill_(float("nan"))
    space.copy_(out.detach())
    return (out * space).mean()


def norm_overflow_nobody_uses(out):
    big = (out.detach() * 1e30) ** 2
    assert torch.isinf(big).any()
    return out.mean()


HARMLESS = [
    masked_softmax,
    additive_mask,
    log_of_a_mask,
    largest_of_masked,
    where_in_forward_only,
    nan_replaced,
    missing_labels,
    best_so_far,
    fresh_memory,
    norm_overflow_nobody_uses,
]


@pytest.mark.parametrize("loss_fn", HARMLESS, ids=lambda f: f.__name__)
def test_harmless(loss_fn):
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(model.parameters())
    with Locator([model]) as locator:
        for _ in range(2):
            optimizer.zero_grad()
            loss_fn(model(X)).backward()
            optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert locator.first is None
    assert locator.notes == []


def test_an_overflow_that_the_scaler_skips_is_ordinary_and_without_one_is_not():
    def step(with_scaler):
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        with Locator([model]) as locator:
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.ones(8, 4)).float().sum()
            if with_scaler:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                (loss * 2.0**20).backward()
                optimizer.step()
        return locator.first

    assert step(True) is None
    found = step(False)
    assert found.kind == "backward"
    assert "overflows float16" in found.detail
