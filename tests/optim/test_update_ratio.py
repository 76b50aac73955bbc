"""The bound on the update ratio, as a function and under an optimizer."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from steadygrad.optim import LAMB, BoundedUpdates, clip_update_ratio_
from tests.optim.cases import draw, give, parameters


def moved_by(sizes):
    before = [p.detach() for p in parameters()]
    return [b + s * d for b, s, d in zip(before, sizes, draw(1), strict=True)], before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_agrees_with_a_plain_loop(dtype):
    after, before = moved_by([1e-4, 1.0, 1e6, 10.0, 0.0])
    after, before = [a.to(dtype) for a in after], [b.to(dtype) for b in before]
    before[3].zero_()
    want, worst = [], 0.0
    for a, b in zip(after, before, strict=True):
        a, b = a.double(), b.double()
        ratio = float((a - b).norm() / max(b.norm(), 1e-3 * math.sqrt(b.numel())))
        worst = max(worst, ratio)
        want.append(b + (a - b) * min(1.0, 0.02 / ratio) if ratio else a)
    stats = clip_update_ratio_(after, before, max_ratio=0.02)
    rounding = 5e-3 if dtype == torch.bfloat16 else 1e-5
    for got, value in zip(after, want, strict=True):
        torch.testing.assert_close(got.double(), value, rtol=rounding, atol=rounding * 1e-2)
    assert stats.norm.item() == pytest.approx(worst, rel=2 * rounding)
    assert stats.clipped.item() == pytest.approx(3 / 5) and bool(stats.finite)
    assert stats.limit.item() == pytest.approx(0.02)


def test_a_step_within_the_bound_keeps_every_bit():
    after, before = moved_by([1e-3] * 5)
    kept = [a.clone() for a in after]
    stats = clip_update_ratio_(after, before, max_ratio=0.1)
    assert all(torch.equal(a, k) for a, k in zip(after, kept, strict=True))
    assert stats.scale == 1 and stats.clipped == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_steps_are_reported_and_nothing_is_changed(bad):
    after, before = moved_by([1.0] * 5)
    after[0][0, 0] = bad
    kept = [a.clone() for a in after]
    stats = clip_update_ratio_(after, before)
    assert not stats.finite and stats.scale.isnan()
    assert all(torch.equal(a, k) for a, k in zip(after[1:], kept[1:], strict=True))
    assert not after[0].isfinite().all()


def test_empty_zero_and_complex():
    assert clip_update_ratio_([], []).norm == 0
    assert clip_update_ratio_([torch.ones(0)], [torch.ones(0)]).scale == 1
    still = torch.zeros(3)
    assert clip_update_ratio_([still], [still.clone()]).norm == 0
    after, before = torch.tensor([3.0 + 6.0j]), torch.tensor([3.0 + 4.0j])
    clip_update_ratio_([after], [before], max_ratio=0.1)
    assert after[0].imag.item() == pytest.approx(4.5)


def test_bad_input_changes_nothing():
    after, before = moved_by([1.0] * 5)
    kept = [a.clone() for a in after]
    for settings in ({"max_ratio": 0.0}, {"max_ratio": -1.0}, {"min_rms": 0.0}, {"min_rms": math.inf}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            clip_update_ratio_(after, before, **settings)
    with pytest.raises(ValueError, match="one entry for each of the 5 params, got 4"):
        clip_update_ratio_(after, before[:4])
    with pytest.raises(ValueError, match=r"before\[1\] has shape"):
        clip_update_ratio_(after, [before[0], before[0], *before[2:]])
    assert all(torch.equal(a, k) for a, k in zip(after, kept, strict=True))
    with pytest.raises(TypeError, match="torch.optim.Optimizer"):
        BoundedUpdates(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="max_ratio"):
        BoundedUpdates(torch.optim.SGD(parameters()), max_ratio=0)


def test_vectors_are_free_unless_asked_for():
    for vectors in (False, True):
        params = parameters()
        before = [p.detach().clone() for p in params]
        optimizer = torch.optim.SGD(params, lr=1.0)
        with BoundedUpdates(optimizer, max_ratio=0.01, vectors=vectors):
            give(params, draw(2))
            optimizer.step()
        for p, b in zip(params, before, strict=True):
            ratio = ((p.detach() - b).norm() / b.norm()).item()
            assert (ratio < 0.0101) is (vectors or p.ndim > 1)


def test_state_of_the_optimizer_is_its_own_and_remove_ends_it():
    params, free = parameters(), parameters()
    optimizer, other = torch.optim.Adam(params, lr=1.0), torch.optim.Adam(free, lr=1.0)
    bound = BoundedUpdates(optimizer, max_ratio=0.01, vectors=True)
    for seed in range(3):
        give(params, draw(seed))
        give(free, draw(seed))
        optimizer.step()
        other.step()
        assert bound.stats.clipped == 1
    for p, q in zip(params, free, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], other.state[q]["exp_avg_sq"])
        assert not torch.equal(p, q)
    bound.remove()
    before = params[0].detach().clone()
    give(params, draw(3))
    optimizer.step()
    assert (params[0].detach() - before).norm() / before.norm() > 0.1
    assert repr(bound) == "BoundedUpdates(max_ratio=0.01, min_rms=0.001, vectors=True)"


def test_parameters_without_a_gradient_closures_and_later_groups():
    params = parameters()
    optimizer = torch.optim.SGD(params[:1], lr=1.0)
    bound = BoundedUpdates(optimizer, max_ratio=0.01)
    optimizer.add_param_group({"params": params[4:]})
    give(params, [draw(0)[0], None, None, None, None])
    before = params[0].detach().clone()

    def closure():
        return params[0].square().sum()

    assert optimizer.step(closure) == before.square().sum()
    assert bound.stats.clipped == 1
    give(params, [*draw(0)[:4], 100 * draw(0)[4]])
    before = params[4].detach().clone()
    optimizer.step()
    assert ((params[4].detach() - before).norm() / before.norm()).item() == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_raises_or_is_skipped_by_a_scaler_leaves_the_weights():
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0)
    bound = BoundedUpdates(optimizer)
    before = [p.detach().clone() for p in params]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    give(params, [g * math.inf for g in draw(0)])
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True)) and bound.stats.norm == 0


def test_copies_of_the_optimizer_are_free():
    params = parameters()
    optimizer = LAMB(params, lr=0.5)
    with BoundedUpdates(optimizer):
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            theirs = copied.param_groups[0]["params"]
            before = theirs[0].detach().clone()
            give(theirs, draw(0))
            copied.step()
            assert (theirs[0].detach() - before).norm() / before.norm() > 0.4
