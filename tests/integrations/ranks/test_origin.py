"""A rank remembers enough of its own passes to be blamed, and nothing that changes them."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad.integrations.ranks.origin import WITNESSES, Origin


def net(layers: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(3, 3), nn.Tanh())))


def backward(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().mean().backward()


def test_nan_that_comes_through_the_backward_pass_is_seen():
    model, origin = net(), Origin()
    origin.watch([model], list(model.parameters()))
    backward(model, torch.ones(2, 3))
    assert not origin.own_gradient_is_bad()
    backward(model, torch.full((2, 3), float("nan")))
    for p in model.parameters():
        p.grad.zero_()  # as a reduction overwrites it
    assert origin.own_gradient_is_bad()
    origin.forget()
    assert not origin.own_gradient_is_bad()


def test_a_few_are_looked_at_and_all_when_asked():
    model, origin = net(), Origin()
    params = list(model.parameters())
    hit = params[1]  # no witness
    hit.register_hook(lambda grad: grad * float("nan"))
    for everything in (False, True):
        origin.watch([model], params, everything=everything)
        backward(model, torch.ones(2, 3))
        assert origin.own_gradient_is_bad() is everything
        hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in params)
        assert hooks == len(params) if everything else hooks <= WITNESSES
    origin.close()
    assert not any(p._post_accumulate_grad_hooks for p in params)


def test_sample_is_known_where_the_others_are_finite():
    origin = Origin()
    x = torch.ones(4, 2, requires_grad=True)
    origin.saw_output(x * torch.tensor([1.0, 1.0, float("inf"), 1.0])[:, None])
    assert origin.bad_sample() == 2
    origin.saw_output(x * float("nan"))
    assert origin.bad_sample() == -1
    origin.forget()
    assert origin.bad_sample() == -1
    with torch.no_grad():
        origin.saw_output(x * float("nan"))  # an evaluation
    assert origin.bad_sample() == -1


def test_gradient_that_cannot_be_read_does_no_harm(monkeypatch):
    model, origin = net(1), Origin()
    origin.watch([model], list(model.parameters()))
    monkeypatch.setattr(origin, "saw_gradient", lambda *_: 1 / 0)
    backward(model, torch.ones(2, 3))
    assert model[0].weight.grad is not None and not origin.own_gradient_is_bad()
