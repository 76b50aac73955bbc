"""A model on a device that lags behind its host, on a machine that has none: the same run, and how often it waits."""

import gc
import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.probe import norms as norms_module
from steadygrad.probe.host import lagging
from steadygrad.probe.look import Look
from steadygrad.testing import Fault, inject
from steadygrad.trace.reader import Run
from tests.integrations.trainings import blobs, differences, leavings

STEPS = 130
LATE = 100  # the step that goes wrong


@pytest.fixture(autouse=True)
def in_double(monkeypatch):
    """A device adds norms up in double, a CPU in float32: here both in double, so that their runs can be compared."""
    monkeypatch.setattr(norms_module, "_width", lambda values: torch.float64)


def network(norm):
    """Large enough for a piece of it in every part of the rotation."""
    middle = [nn.BatchNorm1d(192)] if norm else []
    return nn.Sequential(
        nn.Linear(16, 192), *middle, nn.Tanh(), nn.Linear(192, 192), nn.Tanh(), nn.Linear(192, 4)
    )


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-3, fused=True)


def train(make, *, norm=False, schedule=False, scaler=None, wrap=None, leave_out=(), begin=lambda step: None):
    """What a training leaves behind. ``begin`` is called when the gradients of a step are there."""
    gc.collect()  # or the models of an earlier run would share the names of this one's
    torch.manual_seed(0)
    model = network(norm)
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200) if schedule else None
    scaler = torch.amp.GradScaler("cpu", **scaler) if scaler is not None else None
    x, y = blobs(256)
    losses = []
    with wrap(model, optimizer) if wrap is not None else nullcontext():
        for step in range(STEPS):
            if step in leave_out:
                continue
            i = torch.arange(32) + 32 * (step % 8)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[i]), y[i])
            (scaler.scale(loss) if scaler is not None else loss).backward()
            begin(step)
            if scaler is not None:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.detach())
    return leavings([model], [optimizer], [loss.item() for loss in losses])


class Watched:
    """A watched training, on a device that lags or on the CPU as it is."""

    def __init__(self, folder, make, *, late, fault=None, **options):
        self.waits = []  # of the host, in each step
        self.late_steps = 0  # whose numbers were on their way when the step was over

        @contextmanager
        def wrap(model, optimizer):
            with sg.watch(model, optimizer, runs=folder) as self.watcher:
                with inject(model, fault, optimizer=optimizer) if fault else nullcontext():
                    yield

        with lagging() if late else nullcontext() as device:
            begun = [0]

            def begin(step):
                if late:
                    self.late_steps += self.watcher._session._judging._docket._waiting[-1:] != [] and (
                        self.watcher._session._judging._docket._waiting[-1].ended.on_its_way is not None
                    )
                    self.waits.append(device.waits - begun[0])
                    begun[0] = device.waits
                    device.catch_up()  # a device is no more than a forward and a backward pass behind

            self.left = train(make, wrap=wrap, begin=begin, **options)
            self.summary = self.watcher.close()
        self.ring = self.watcher._session._guard.ring.ticks
        summary = self.summary
        self.said = {
            "findings": [f.to_json() for f in summary.findings],
            "actions": [a.to_json() for a in summary.actions],
            "counts": (
                summary.steps,
                summary.skipped,
                summary.loss_first,
                summary.loss_last,
                summary.loss_best,
            ),
            "notes": summary.notes,
            "verdict": summary.verdict,
        }


KINDS = {
    "sgd": (sgd, {}),
    "adam with a schedule": (adam, {"schedule": True}),
    "fused adamw with batchnorm": (adamw, {"norm": True}),
    "fused adamw with a scaler": (adamw, {"scaler": {"init_scale": 64.0}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_run_is_the_same_and_waits_once_a_step_or_never(kind, tmp_path):
    make, options = KINDS[kind]
    plain = train(make, **options)
    late = Watched(tmp_path / "late", make, late=True, **options)
    assert differences(plain, late.left) == []
    near = Watched(tmp_path / "near", make, late=False, **options)
    assert (late.said, late.ring) == (near.said, near.ring)
    # The gradients' norms decide on the step: on the device, if that can leave a fused step out; else the host waits
    # for them. A fused step under a GradScaler is asked for its own overflow as well.
    usual = 2 if "scaler" in options else 0 if make is adamw else 1
    ordinary = late.waits[30:]
    assert late.late_steps > 15  # a small net is looked at every fourth step
    assert sorted(ordinary)[: len(ordinary) // 2] == [usual] * (len(ordinary) // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_skipped_leaves_no_trace(kind, tmp_path):
    make, options = KINDS[kind]
    if "scaler" in options:
        pytest.skip("the scaler skips it by itself")
    wanted = train(make, leave_out=[LATE], **options)
    fault = Fault("grad", step=LATE, value=math.nan)
    late = Watched(tmp_path / "late", make, late=True, fault=fault, **options)
    near = Watched(tmp_path / "near", make, late=False, fault=fault, **options)
    assert [(a["step"], a["action"]) for a in late.said["actions"]] == [(LATE, "skip")]
    assert (late.said, late.ring) == (near.said, near.ring)
    for left in (wanted, late.left):
        left.pop("losses")
        left.pop("rng")
    assert differences(wanted, late.left) == []


def test_the_record_of_a_step_is_the_same(tmp_path):
    """Every number of every step, those that arrived a step later among them."""
    stored = []
    for late in (False, True):
        watched = Watched(tmp_path / str(late), adamw, late=late, norm=True)
        run = Run(watched.summary.run_dir)
        curves = {key: run.scalar(key) for key in run.scalar_keys() if "second" not in key}
        for stat in run.stats("param"):
            curves |= {(stat, p.name): run.series(stat, p.name) for p in run.params}
        stored.append({key: [values.tolist() for values in curve] for key, curve in curves.items()})
    near, late = stored
    assert near.keys() == late.keys() and len(near) > 20
    assert [key for key in near if repr(near[key]) != repr(late[key])] == []


def test_weights_found_broken_a_step_late_are_put_back_before_the_next_update(tmp_path):
    """What the rotation finds may come with the next gradient, which the broken weights have made: it is not used."""
    step = 112  # in which the rotation looks at the beginning of the first weight
    fault = Fault("state", step=step, tensor="0.weight:exp_avg_sq", value=math.nan)
    near = Watched(tmp_path / "near", adamw, late=False, fault=fault)
    late = Watched(tmp_path / "late", adamw, late=True, fault=fault)
    done = [[(a["step"], a["action"]) for a in watched.said["actions"]] for watched in (near, late)]
    assert done == [[(step, "rollback")], [(step, "rollback"), (step + 1, "skip")]]
    assert "taken back" in late.said["actions"][1]["reason"]
    assert late.said["findings"][0] == near.said["findings"][0]
    assert all(bool(v.isfinite().all()) for k, v in late.left.items() if k.startswith("model"))


def test_whoever_asks_is_told_of_steps_whose_numbers_are_on_their_way(tmp_path):
    model = network(norm=False)
    optimizer = sgd(model.parameters())
    with lagging(), sg.watch(model, optimizer, runs=tmp_path) as watcher:
        for step in range(40):
            optimizer.zero_grad()
            model(torch.ones(8, 16)).square().mean().backward()
            optimizer.step()
            assert isinstance(watcher.findings, list)
            assert (
                watcher._session._judging._docket.take() == [] and watcher._session.record.steps == step + 1
            )


def test_an_error_in_the_numbers_disarms_and_the_run_goes_on(tmp_path, monkeypatch):
    def broken(look, applied):
        raise ArithmeticError("on purpose")

    plain = train(adamw)
    monkeypatch.setattr(Look, "finish", broken)
    late = Watched(tmp_path, adamw, late=True)
    assert differences(plain, late.left) == []
    assert ["ArithmeticError" in note for note in late.said["notes"]] == [True]


@pytest.mark.parametrize("asked", [False, True])
def test_a_stop_that_comes_with_the_next_gradient_leaves_the_last_good_state(asked, tmp_path):
    """As above, with no rollback left: the step raises, whether or not somebody asked before it."""
    step, kept, taken = 112, {}, []

    @contextmanager
    def wrap(model, optimizer):
        with sg.watch(model, optimizer, runs=tmp_path) as kept["watcher"]:
            kept["model"] = model
            with inject(model, Fault("state", step, math.nan, "0.weight:exp_avg_sq"), optimizer=optimizer):
                yield

    def begin(now):
        taken.append(now)
        guard = kept["watcher"]._session._guard
        if guard is not None:
            guard.policy.rollbacks = guard.policy.limits.max_rollbacks
        if asked:
            assert isinstance(kept["watcher"].findings, list)

    with lagging(), pytest.raises(sg.GuardStop):
        train(adamw, norm=True, wrap=wrap, begin=begin)
    assert taken[-1] == step + 1
    summary = kept["watcher"].close()
    assert [(a.step, a.action) for a in summary.actions] == [(step, "stop")] and summary.steps == step + 1
    assert all(bool(value.isfinite().all()) for value in kept["model"].state_dict().values())
