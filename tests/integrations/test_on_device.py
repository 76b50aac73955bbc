"""A step that the device decides on comes to what it comes to when the host waits and decides, bit for bit."""

import gc
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import adam

import steadygrad as sg
from steadygrad.integrations import on_device
from steadygrad.probe.ended import Unread
from steadygrad.probe.host import lagging
from steadygrad.testing import Fault, inject
from steadygrad.trace.reader import Run
from tests.integrations.trainings import blobs, differences, leavings

STEPS = 60
BAD = 45  # the step that goes wrong


def network(norm=True):
    middle = [nn.BatchNorm1d(24)] if norm else []
    return nn.Sequential(nn.Linear(16, 24), *middle, nn.Tanh(), nn.Linear(24, 4))


OPTIMIZERS = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "amsgrad": lambda params: torch.optim.Adam(params, lr=1e-3, weight_decay=0.1, amsgrad=True, fused=True),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, fused=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01, fused=True),
}
SCHEDULES = {
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=100),
}


def set_to_none(step, loss, optimizer):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def set_to_zero(step, loss, optimizer):
    optimizer.zero_grad(set_to_none=False)
    loss().backward()
    optimizer.step()


def cleared_late(step, loss, optimizer):
    """The gradients of a step stay for the first backward pass of the next, and are cleared every third step."""
    loss().backward()
    optimizer.step()
    if step % 3 == 2:
        optimizer.zero_grad()


def accumulated(step, loss, optimizer):
    optimizer.zero_grad()
    for _ in range(3):
        (loss() / 3).backward()
    optimizer.step()


def stepped_twice(step, loss, optimizer):
    """A second step on the same gradients, with no backward pass between them."""
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    if step % 5 == 0:
        optimizer.step()


def by_hand(step, loss, optimizer):
    """From step 30 on gradients that no backward pass has put there."""
    if step < 30:
        return set_to_none(step, loss, optimizer)
    params = optimizer.param_groups[0]["params"]
    for p, grad in zip(params, torch.autograd.grad(loss(), params), strict=True):
        p.grad = grad
    optimizer.step()


def clipped(step, loss, optimizer):
    optimizer.zero_grad()
    loss().backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def once_with_closure(step, loss, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    assert optimizer.step(closure) is not None


class Training:
    """A watched training on a stand-in for a device that lags: what it leaves behind, what is said, and the waits."""

    def __init__(
        self, folder, *, by, monkeypatch, make="adamw", loop=set_to_none, schedule=None, scaler=False, faults=(),
        norm=True, bad_batches=(), bad_losses=(), asked=False,
    ):  # fmt: skip
        gc.collect()  # or the models of an earlier run would share the names of this one's
        monkeypatch.setattr(on_device, "YOUNG", 20 if by == "device" else math.inf)
        torch.manual_seed(0)
        model = network(norm)
        optimizer = OPTIMIZERS[make](model.parameters())
        scheduler = SCHEDULES[schedule](optimizer) if schedule else None
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if scaler else None
        x, y = blobs(256)
        losses, self.waits = [], []
        with lagging() as device, sg.watch(model, optimizer, runs=folder) as watcher:
            with inject(model, *faults, optimizer=optimizer) if faults else nullcontext():
                for step in range(STEPS):
                    i = torch.arange(32) + 32 * (step % 8)
                    given = x[i] * math.nan if step in bad_batches else x[i]

                    def loss(given=given, i=i, more=math.nan if step in bad_losses else 0.0):
                        value = F.cross_entropy(model(given), y[i]) + more
                        losses.append(value.detach())
                        return scaler.scale(value) if scaler is not None else value

                    begun = device.waits
                    device.catch_up()
                    if scaler is not None:
                        optimizer.zero_grad()
                        loss().backward()
                        device.catch_up()
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        loop(step, loss, optimizer)
                    self.waits.append(device.waits - begun)
                    if asked:
                        assert isinstance(watcher.actions, (list, tuple))
                    if scheduler is not None:
                        scheduler.step()
        summary = watcher.close()
        self.left = leavings([model], [optimizer], [value.item() for value in losses])
        if scheduler is not None:
            self.left["schedule"] = scheduler.state_dict() | {"_step_count": 0}
        self.ring = watcher._session._guard.ring.ticks
        self.located = summary.first_nonfinite
        self.actions = [(a.step, a.action, a.code) for a in summary.actions]
        self.said = {
            "findings": [f.to_json() for f in summary.findings],
            "actions": [a.to_json() for a in summary.actions],
            "causes": [c.to_json() for c in summary.causes],
            "counts": (
                summary.steps,
                summary.skipped,
                summary.amp_skips,
                summary.loss_first,
                summary.loss_last,
                summary.loss_best,
            ),
            "notes": summary.notes,
            "verdict": summary.verdict,
        }
        run = Run(summary.run_dir)
        curves = {key: run.scalar(key) for key in run.scalar_keys() if "second" not in key}
        for stat in run.stats("param"):
            curves |= {(stat, p.name): run.series(stat, p.name) for p in run.params}
        self.record = {key: repr([values.tolist() for values in curve]) for key, curve in curves.items()}


def nan(step=BAD, times=1):
    return Fault("grad", step=step, value=math.nan, times=times)


def big(value, step=BAD, tensor=None):
    return Fault("grad", step=step, value=value, tensor=tensor)


# What happens, in what training, whether ordinary steps are the device's there, and what the guard then does.
SKIP, SPIKE, POISONED = (BAD, "skip", "G100"), (BAD, "skip", "G103"), (BAD, "skip", "P100")
CASES = {
    "healthy": ({}, True, []),
    "nan": ({"faults": [nan()]}, True, [SKIP]),
    "inf": ({"faults": [big(math.inf)], "schedule": "cosine"}, True, [SKIP]),
    "square overflows": ({"faults": [big(1e25)], "schedule": "one cycle"}, True, [SPIKE]),
    "a million times the largest": ({"faults": [big(1e9)], "make": "momentum"}, True, [SPIKE]),
    "large but usable": ({"faults": [big(1e3)], "make": "sgd"}, True, []),
    "a batch of nan": ({"bad_batches": [BAD]}, True, [SKIP]),
    "a batch of nan, without buffers": ({"bad_batches": [BAD], "norm": False}, True, [SKIP]),
    "a warning, and back to its snapshot": ({"bad_losses": [BAD], "faults": [nan(BAD + 10, 3)]}, True, None),
    "a buffer": ({"faults": [Fault("buffer", step=BAD, tensor="1.running_var")]}, True, [POISONED]),
    "two in a row": (
        {"faults": [nan(times=2)], "schedule": "cosine"},
        True,
        [SKIP, (BAD + 1, "skip", "G100")],
    ),
    "three in a row": (
        {"faults": [nan(times=3)]},
        True,
        [*[(BAD + i, "skip", "G100") for i in range(3)], (BAD + 2, "rollback", "G100")],
    ),
    "adam": ({"faults": [nan()], "make": "amsgrad"}, True, [SKIP]),
    "adagrad": ({"faults": [nan(40), big(1e30, 50)], "make": "adagrad"}, True, None),
    "set to zero": ({"faults": [nan()], "loop": set_to_zero}, False, [SKIP]),
    "cleared late": ({"faults": [nan(21), nan()], "loop": cleared_late}, False, None),
    "stepped twice": ({"faults": [nan()], "loop": stepped_twice}, True, None),
    "by hand": ({"loop": by_hand, "bad_batches": [BAD]}, True, [SKIP]),
    "accumulated": ({"faults": [nan(3 * BAD + 1)], "loop": accumulated}, True, [SKIP]),
    "a closure": ({"faults": [nan()], "loop": once_with_closure}, True, [SKIP]),
    "a clip": ({"faults": [nan()], "loop": clipped}, False, [SKIP]),
    "a scaler": ({"faults": [nan()], "scaler": True}, False, []),
    "somebody asks": ({"faults": [nan()], "asked": True, "schedule": "cosine"}, None, [SKIP]),
}
QUICK = ("square overflows", "cleared late", "a buffer")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_the_device_decides_as_the_host_does(case, tmp_path, monkeypatch):
    settings, ordinary, actions = CASES[case]
    host = Training(tmp_path / "host", by="host", monkeypatch=monkeypatch, **settings)
    device = Training(tmp_path / "device", by="device", monkeypatch=monkeypatch, **settings)
    assert repr(device.said) == repr(host.said) and device.ring == host.ring
    assert differences(host.left, device.left) == []
    assert [key for key in host.record if host.record[key] != device.record.get(key)] == []
    if actions is not None:
        assert device.actions == actions
    if ordinary is not None:
        quiet = [w for w in device.waits[24:BAD] if w == 0]
        assert (len(quiet) >= 16) if ordinary else (len(quiet) <= 2)
    assert all(host.waits)


@pytest.mark.slow
def test_the_operation_behind_a_bad_step_is_looked_for_one_batch_later(tmp_path, monkeypatch):
    """All else is the same: it takes the host's word to have every operation of a forward pass watched."""
    bad = [BAD, BAD + 1, BAD + 2]
    runs = [
        Training(tmp_path / by, by=by, monkeypatch=monkeypatch, norm=False, bad_batches=bad)
        for by in ("host", "device")
    ]
    host, device = runs
    assert [run.located.batch for run in runs] == [BAD + 1, BAD + 2]
    assert host.located.line == device.located.line > 0
    for run in runs:
        run.said.pop("causes")
    assert repr(device.said) == repr(host.said) and differences(host.left, device.left) == []


@pytest.mark.slow
def test_poisoned_weights_are_found_one_batch_later(tmp_path, monkeypatch):
    """The batch that was worked on meanwhile is lost: its gradient is that of the weights that were put back."""
    fault = Fault("param", step=BAD, tensor="0.weight", value=math.nan)
    host, device = (
        Training(tmp_path / by, by=by, monkeypatch=monkeypatch, faults=[fault]) for by in ("host", "device")
    )
    assert host.actions == [SKIP, (BAD, "rollback", "P100")]
    assert device.actions == [*host.actions, (BAD + 1, "skip", "")]
    assert "taken back" in device.said["actions"][2]["reason"]
    assert all(bool(v.isfinite().all()) for k, v in device.left.items() if k.startswith("model"))


@pytest.mark.slow
def test_two_optimizers_decide_alike(tmp_path, monkeypatch):
    """Each step is the other's next one, at which its numbers are read."""
    left, actions, waits = [], [], []
    for by in ("host", "device"):
        gc.collect()
        monkeypatch.setattr(on_device, "YOUNG", 20 if by == "device" else math.inf)
        torch.manual_seed(0)
        models = [network(), network(norm=False)]
        optimizers = [
            OPTIMIZERS["adamw"](models[0].parameters()),
            OPTIMIZERS["momentum"](models[1].parameters()),
        ]
        x, y = blobs(32)
        losses = []
        with lagging() as device, sg.watch(models, *optimizers, runs=tmp_path / by) as watcher:
            for step in range(STEPS):
                for model, optimizer in zip(models, optimizers, strict=True):
                    bad = step == BAD and model is models[0] or step == BAD + 3 and model is models[1]
                    loss = F.cross_entropy(model(x * math.nan if bad else x), y)
                    loss.backward()
                    device.catch_up()
                    optimizer.step()
                    optimizer.zero_grad()
                    losses.append(loss.detach())
        actions.append([(a.step, a.optimizer, a.action) for a in watcher.close().actions])
        left.append(leavings(models, optimizers, [loss.item() for loss in losses]))
        waits.append(device.waits)
    assert actions == [[(BAD, 0, "skip"), (BAD + 3, 1, "skip")]] * 2
    assert differences(*left) == [] and waits[1] < waits[0] - STEPS


@pytest.mark.parametrize("where", ["step", "numbers"])
def test_an_error_leaves_no_flag_behind(where, tmp_path, monkeypatch):
    """Of the user's in his step, or of our own when the numbers have arrived."""
    torch.manual_seed(0)
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    x, y = blobs(32)
    raised = []

    def broken(*args, **kwargs):
        raise ArithmeticError("on purpose")

    with lagging(), sg.watch(model, optimizer, runs=tmp_path) as watcher:
        for step in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with monkeypatch.context() as patch:
                if step == 30:
                    patch.setattr(*((adam, "adam") if where == "step" else (Unread, "read")), broken)
                try:
                    optimizer.step()
                except ArithmeticError:
                    raised.append(step)
            assert not hasattr(optimizer, "found_inf")
        armed = watcher._session.armed
    assert (raised, armed) == (([30], True) if where == "step" else ([], False))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_hooks_around_the_step_are_run_as_ever(tmp_path, monkeypatch):
    """A skipped step runs none of them, so the host has to know of it."""
    monkeypatch.setattr(on_device, "YOUNG", 20)
    torch.manual_seed(0)
    model, seen = network(), []
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    optimizer.register_step_post_hook(lambda *_: seen.append(len(seen)))
    x, y = blobs(32)
    with lagging() as device, sg.watch(model, optimizer, runs=tmp_path):
        for step in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x * math.nan if step == 35 else x), y).backward()
            begun = device.waits
            optimizer.step()
            assert device.waits > begun
    assert len(seen) == 39
