"""A folded clip in flight is told apart from a GradScaler, and its norms are taken as they are."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import steadygrad as sg
from steadygrad.clip import FoldedClip, folded
from tests.clip.folding import gradients, net, same
from tests.integrations.trainings import differences
from tests.probe.counting import Counting
from tests.probe.watching import Watching

pytestmark = pytest.mark.filterwarnings("ignore:FoldedClip clips the plain way")
WAYS = {"near": (True, ("cpu",)), "as_on_a_gpu": (True, ()), "plain": (False, ("cpu",))}


@pytest.fixture(params=WAYS)
def fused(request, monkeypatch):
    """Whether the optimizer is fused; the flag and factor are set as on the device of the way."""
    is_fused, near = WAYS[request.param]
    monkeypatch.setattr(folded, "NEAR", near)
    return is_fused


def joint_norm(model):
    return float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())


def spoil(model):
    next(model.parameters()).grad.view(-1)[5] = math.nan


def scaled_gradients(model, scaler, step, factor=1.0):
    model.zero_grad()
    g = torch.Generator().manual_seed(step)
    loss = model(torch.randn(8, 16, generator=g)).square().mean()
    scaler.scale(loss * factor).backward()


def test_norms_on_record_are_those_before_and_after_the_fold(fused):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip, true = FoldedClip(optimizer, 1.0), []
    with Watching(model, optimizer) as run:
        for step in range(6):
            gradients(model, step)
            true.append(joint_norm(model))
            clip.step()
    assert run.calls == ["step"] * 6
    assert [r.grad_norm for r in run.records] == pytest.approx(true)
    assert [r.clipped_grad_norm for r in run.records] == pytest.approx([min(1.0, n) for n in true], rel=1e-5)
    assert min(true) < 1 < max(true)


def test_the_folds_norms_are_not_taken_a_second_time(fused):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip, reads = FoldedClip(optimizer, 1.0), []
    size = sum(4 * p.numel() for p in model.parameters())
    with Watching(model, optimizer) as run:
        for step in range(32):
            gradients(model, step)
            with Counting() as count:
                clip.step()
            if not run.records[-1].tensors:  # the rotation takes norms of its own
                reads.append(count.bytes_read["_foreach_norm"])
    assert len(reads) > 8 and set(reads) == {size}


@pytest.mark.parametrize("written", [False, True])
def test_gradients_that_are_no_longer_those_of_the_fold_are_read(written, fused):
    """A wrapper around the step may write to a gradient between the norm and the step."""
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    inner = AdamW.step
    with Watching(model, optimizer) as run:
        seen = optimizer.step

        def wrapped():
            if written:
                spoil(model)
            return seen()

        optimizer.step = torch.no_grad()(wrapped)
        optimizer.step.__wrapped__ = inner  # as if by functools.wraps: the clip still folds
        gradients(model, 0)
        FoldedClip(optimizer, 1.0).step()
        del optimizer.step
    assert math.isinf(run.records[0].grad_norm) is written


def test_a_fold_that_skips_is_a_step_not_taken_and_no_overflow(fused):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip = FoldedClip(optimizer, 1.0)
    with Watching(model, optimizer) as run:
        for step in range(4):
            gradients(model, step)
            if step == 2:
                spoil(model)
            clip.step()
    assert run.calls == ["step", "step", "skip", "step"]
    assert [math.isfinite(r.grad_norm) for r in run.records] == [True, True, False, True]
    assert [r.applied for r in run.records] == [True, True, False, True]
    assert [r.step for r in run.records] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_an_overflow_that_the_scaler_found_is_the_scalers_skip(kind, fused):
    model = net()
    optimizer = kind(model.parameters(), lr=0.01, fused=fused)
    clip, scaler = FoldedClip(optimizer, 1.0), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Watching(model, optimizer) as run:
        for step in range(5):
            scaled_gradients(model, scaler, step, 1e38 if step in (1, 2) else 1.0)
            scaler.unscale_(optimizer)
            clip.step()
            scaler.update()
    assert run.calls == ["step", "amp", "amp", "step", "step"]
    by_the_flag = fused and not folded.NEAR  # the fused step is called, and does nothing
    assert run.scalers == [None if by_the_flag else scaler] * 2 and scaler.get_scale() == 256.0
    assert [r.amp_skips for r in run.records] == [0, 2, 0]


def test_a_nan_that_came_after_the_scaler_looked_is_no_overflow(fused):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip, scaler = FoldedClip(optimizer, 1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
    other = torch.amp.GradScaler("cpu", enabled=False)
    with Watching(model, optimizer) as run:
        for step in range(3):
            scaled_gradients(model, other, step)
            scaled_gradients(model, scaler, step)
            scaler.unscale_(optimizer)
            if step == 1:
                spoil(model)
            clip.step()
            scaler.update()
    assert run.calls == ["step", "skip", "step"] and run.scalers == []


def test_an_overflow_of_another_optimizer_is_none_of_this_one(fused):
    model, other = net(), net()
    optimizer, stranger = AdamW(model.parameters(), fused=fused), AdamW(other.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with Watching(model, optimizer) as run:
        scaled_gradients(model, scaler, 0)
        scaled_gradients(other, scaler, 0, 1e39)
        scaler.unscale_(stranger)
        spoil(model)
        FoldedClip(optimizer, 1.0).step()
    assert run.calls == ["skip"]


def test_a_scaler_that_overflowed_before_its_update_is_forgotten_with_it(fused):
    model = net()
    optimizer = AdamW(model.parameters(), fused=fused)
    clip, scaler = FoldedClip(optimizer, 1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
    with Watching(model, optimizer) as run:
        scaled_gradients(model, scaler, 0, 1e39)
        scaler.unscale_(optimizer)
        clip.step()
        scaler.update()
        gradients(model, 1)
        spoil(model)
        clip.step()
    assert run.calls == ["amp", "skip"]


def test_the_guard_records_the_skip_and_the_run_is_as_without_it(fused, tmp_path):
    results = []
    for watched in (False, True):
        model = net()
        optimizer = AdamW(model.parameters(), fused=fused)
        clip = FoldedClip(optimizer, 1.0)
        watcher = sg.watch(model, optimizer, runs=tmp_path) if watched else None
        for step in range(6):
            gradients(model, step)
            if step == 3:
                spoil(model)
            clip.step()
        results.append((model.state_dict(), optimizer.state_dict()))
    assert differences(*results) == []
    summary = watcher.close()
    assert summary.skipped == 1 and summary.steps == 6
    assert [(a.action, a.step) for a in summary.actions] == [("skip", 3)]


def test_without_a_watch_nothing_is_told():
    model, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    optimizers = [SGD(m.parameters(), lr=0.1, fused=True) for m in (model, twin)]
    with Watching(model, optimizers[0]) as run:
        for m in (model, twin):
            m(torch.ones(2, 4)).sum().backward()
            m.weight.grad[0, 0] = math.nan
        FoldedClip(optimizers[1], 1.0).step()
        assert run.calls == []
        FoldedClip(optimizers[0], 1.0).step()
        assert run.calls == ["skip"]
    FoldedClip(optimizers[0], 1.0).step()
    assert run.calls == ["skip"] and same(*optimizers)
