"""The same promises on a GPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.integrations import on_device
from steadygrad.testing import Fault, inject
from tests.integrations.trainings import NO_HARM, differences, leavings, unwatched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    """Everything that a training makes lies on the GPU, computed by deterministic kernels."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    with torch.device("cuda"):
        yield
    torch.use_deterministic_algorithms(False)


KINDS = ("mlp_dropout", "cnn_batchnorm", "transformer", "lstm", "gan", "lbfgs", "accumulation")


@pytest.mark.parametrize("kind", KINDS)
def test_healthy_run_is_bit_identical(kind, tmp_path):
    plain = NO_HARM[kind](0, 100, unwatched)
    again = NO_HARM[kind](0, 100, unwatched)
    assert differences(plain, again) == [], "the training itself does not repeat: nothing can be said"
    watchers = []

    def watched(models, optimizers):
        watchers.append(sg.watch(models, *optimizers, runs=tmp_path))
        return watchers[-1]

    assert differences(plain, NO_HARM[kind](0, 100, watched)) == []
    summary = watchers[0].close()
    assert summary.steps == 100 and summary.notes == () and summary.actions == ()


def train(steps, leave_out=(), **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)
    x, y = torch.randn(256, 16), torch.randint(0, 4, (256,))

    def loop():
        for step in range(steps):
            if step in leave_out:
                continue
            i = torch.arange(16) + 16 * (step % 16)
            optimizer.zero_grad()
            F.cross_entropy(model(x[i]), y[i]).backward()
            optimizer.step()

    return model, optimizer, loop


@pytest.mark.parametrize("settings", [{"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20])
def test_fault_in_the_gradient_leaves_no_trace(value, settings, tmp_path):
    wanted, wanted_optimizer, loop = train(100, leave_out=[40], **settings)
    loop()
    model, optimizer, loop = train(100, **settings)
    with (
        sg.watch(model, optimizer, runs=tmp_path) as watcher,
        inject(model, Fault("grad", step=40, value=value)),
    ):
        loop()
    assert [(a.step, a.action) for a in watcher.actions] == [(40, "skip")]
    assert differences(leavings([wanted], [wanted_optimizer], []), leavings([model], [optimizer], [])) == []


def test_rollback_brings_the_weights_back_on_the_gpu(tmp_path):
    model, optimizer, loop = train(100)
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        with inject(model, Fault("param", step=40, tensor="3.weight")):
            loop()
    assert [a.action for a in watcher.actions][-1] == "rollback"
    assert all(p.is_cuda and bool(p.isfinite().all()) for p in model.parameters())
    assert all(bool(v.isfinite().all()) for s in optimizer.state.values() for v in s.values())


@pytest.mark.parametrize("fused", [False, True])
def test_overflow_of_the_scaler_is_counted_as_its_own(fused, tmp_path):
    model, optimizer, _ = train(0, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        for _ in range(80):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = model(torch.randn(16, 16)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    summary = watcher.close()
    assert summary.actions == () and summary.amp_skips > 20
    assert summary.steps + summary.amp_skips == 80


def test_an_ordinary_step_has_no_hidden_sync(tmp_path):
    """Nor an open one: the device decides on it. What is read is read a step later, through pinned memory."""
    model, optimizer, _ = train(0, fused=True)
    x, y = torch.randn(256, 16), torch.randint(0, 4, (256,))
    quiet_steps = left_to_device = 0
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        try:
            for step in range(150):
                session, at = watcher._session, 16 * (step % 16)
                due = session._guard is None or session._guard.ring.will_be_due(session.tick + 1)
                quiet = step > 30 and step % 50 != 0 and not due
                quiet_steps += quiet
                torch.cuda.set_sync_debug_mode("error" if quiet else "default")
                optimizer.zero_grad()
                F.cross_entropy(model(x[at : at + 16]), y[at : at + 16]).backward()
                optimizer.step()
                newest = session._judging._docket._waiting[-1:]
                left_to_device += quiet and newest != [] and newest[0].ended.unread is not None
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert watcher.close().notes == () and quiet_steps > 50 and left_to_device > 50


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25, 1e9, 1.0])
def test_the_device_decides_as_the_host_does(value, tmp_path, monkeypatch):
    """The same training, once with a wait for its norms before every step; as in test_on_device.py."""
    left, said = [], []
    for young in (math.inf, 20):
        monkeypatch.setattr(on_device, "YOUNG", young)
        model, optimizer, loop = train(100, fused=True)
        with (
            sg.watch(model, optimizer, runs=tmp_path / str(young)) as watcher,
            inject(model, Fault("grad", step=45, value=value)),
        ):
            loop()
        summary = watcher.close()
        left.append(leavings([model], [optimizer], []))
        said.append([f.to_json() for f in summary.findings] + [a.to_json() for a in summary.actions])
    assert said[0] == said[1] and differences(*left) == []
