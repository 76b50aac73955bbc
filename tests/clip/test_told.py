"""What whoever watches the step is told of a fold: the raw norms, whose scale it is, and the steps not taken."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from steadygrad.clip import FoldedClip, _told
from tests.clip.folding import Count, as_on_a_device, gradients, net


def watched(optimizer):
    """What is told during each step, by a wrapper of the kind that the probe puts around a step."""
    seen, step = [], optimizer.step

    def wrapper(*args, **kwargs):
        fold = _told.fold_of(optimizer)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append((fold, fold.raw_norms(params)))
        return step(*args, **kwargs)

    wrapper.__wrapped__ = step
    optimizer.step = wrapper
    return seen


def norms(model):
    return [math.nan if p.grad is None else p.grad.norm().item() for p in model.parameters()]


def fold_of(params):
    grads = [p.grad for p in params]
    return _told.Fold(params, grads, torch.stack([g.norm() for g in grads]), torch.tensor(1.0), folded=True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_norm", [0.1, 100.0])
@pytest.mark.parametrize("device_way", [True, False])
def test_the_norms_of_the_step_are_those_before_the_clip(fused, max_norm, device_way, monkeypatch, recwarn):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip, seen = FoldedClip(optimizer, max_norm), watched(optimizer)
    gradients(model, 0)
    model[2].bias.grad = None
    expected = norms(model)
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        stats = clip.step()
    (fold, raw), *more = seen
    assert not more and raw == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert fold.folded is fused and fold.scale == stats.scale
    assert len(fold.params) == len(fold.norms) == 5
    assert _told.fold_of(optimizer) is None


def test_asking_takes_no_second_norm():
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    clip = FoldedClip(optimizer, 0.1)
    watched(optimizer)
    gradients(model, 0)
    with Count() as count:
        clip.step()
    assert count.calls["_foreach_norm"] == 1 and count.calls["linalg_vector_norm"] <= 1


def test_gradients_changed_since_have_to_be_read_again():
    model = net()
    params = list(model.parameters())
    gradients(model, 0)
    fold = _told.Fold(
        params,
        [p.grad for p in params],
        torch.stack([p.grad.norm() for p in params]),
        torch.tensor(0.5),
        folded=True,
    )
    assert fold.raw_norms(params) is not None
    assert fold.raw_norms(params[:2]) == pytest.approx(norms(model)[:2])
    kept = params[3].grad
    params[3].grad = kept.clone()
    assert fold.raw_norms(params) is None
    params[3].grad = kept
    assert fold.raw_norms(params) is not None
    kept.mul_(2)
    assert fold.raw_norms(params) is None and fold.raw_norms(params[:3]) is not None


def test_a_parameter_that_the_clip_did_not_see():
    model = net()
    params = list(model.parameters())
    gradients(model, 0)
    fold = fold_of(params[:2])
    empty = nn.Parameter(torch.zeros(0))
    empty.grad = torch.zeros(0)
    assert fold.raw_norms([params[1], empty]) == [params[1].grad.norm().item(), 0.0]
    assert fold.raw_norms(params) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_norms_that_are_not_finite_are_left_to_the_reader(value):
    """Of the last value the norm overflows in float32, and the gradient is finite: only a second look can tell."""
    model = net()
    params = list(model.parameters())
    gradients(model, 0)
    params[0].grad[0] = value
    fold = _told.Fold(
        params,
        [p.grad for p in params],
        torch.stack([p.grad.norm() for p in params]),
        torch.tensor(1.0),
        folded=True,
    )
    assert fold.raw_norms(params) is None


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_taken_is_told_in_its_place(fused, recwarn):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip, seen = FoldedClip(optimizer, 0.1), watched(optimizer)
    told = []
    listener = lambda o: told.append((o, _told.fold_of(o)))  # noqa: E731
    _told.skip_listeners.append(listener)
    try:
        for step in range(4):
            gradients(model, step)
            if step % 2:
                model[0].weight.grad[0, 0] = math.nan
            clip.step()
    finally:
        _told.skip_listeners.remove(listener)
    assert len(seen) == 2 and [o for o, _ in told] == [optimizer] * 2
    assert all(fold.scale == 1 and not fold.norms.isfinite().all() for _, fold in told)
    assert _told.fold_of(optimizer) is None


def test_nothing_stays_when_the_step_raises_and_nothing_is_kept_alive():
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    handle = optimizer.register_step_post_hook(lambda *_: 1 / 0)
    gradients(model, 0)
    with pytest.raises(ZeroDivisionError):
        FoldedClip(optimizer, 0.1).step()
    assert _told.fold_of(optimizer) is None
    handle.remove()
    ref = weakref.ref(optimizer)
    del optimizer, handle
    gc.collect()
    assert ref() is None
