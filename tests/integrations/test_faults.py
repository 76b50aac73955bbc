"""A fault in one step leaves no trace: the state is what it would be had that step never been taken."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.testing import Fault, inject
from tests.integrations.trainings import blobs, differences, leavings

STEP = 40
STEPS = STEP + 300  # 300 further steps, none of them skipped
NAN, INF = math.nan, math.inf

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "momentum_fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw_loop": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False, fused=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adamw_amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=2, history_size=3),
}


def build(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4)
    )
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) if name != "lbfgs" else None
    x, y = blobs(512)
    batches = [torch.randint(0, 512, (16,)) for _ in range(STEPS)]
    return model, optimizer, schedule, [(x[i], y[i]) for i in batches]


def train(model, optimizer, schedule, batches, leave_out=()):
    """A plain loop. ``leave_out``: steps that are not taken at all, batch unseen."""
    losses = []
    for step, (x, y) in enumerate(batches):
        if step in leave_out:
            continue

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            loss = optimizer.step(closure)
        else:
            loss = closure()
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
    return losses


@functools.cache
def without_the_step(name):
    """What a run that never takes step STEP leaves behind, and how far its schedule has come."""
    model, optimizer, schedule, batches = build(name)
    train(model, optimizer, schedule, batches, leave_out=[STEP])
    return leavings([model], [optimizer], []), schedule and schedule.last_epoch


def skips(watcher):
    return [a for a in watcher.actions if a.action == "skip"]


# Every optimizer with nan, and one of each kind of step with a value that is finite; the long run has all with all.
FAULTS = [
    pytest.param(name, value, id=f"{name}-{value}", marks=[] if quick else pytest.mark.slow)
    for name in OPTIMIZERS
    for value in (NAN, 1e20, INF, -INF)
    for quick in [math.isnan(value) or (value == 1e20 and name in ("momentum", "adamw_fused", "lbfgs"))]
]


@pytest.mark.parametrize(("name", "value"), FAULTS)
def test_fault_in_the_gradient_leaves_no_trace(name, value, tmp_path):
    wanted, last_epoch = without_the_step(name)
    model, optimizer, schedule, batches = build(name)
    # LBFGS evaluates its closure several times a step: find the backward pass that begins step STEP.
    first_pass = STEP if name != "lbfgs" else None
    if first_pass is None:
        counting = build(name)
        calls = []
        handle = counting[0].register_forward_pre_hook(lambda m, a: calls.append(1))
        train(*counting[:3], counting[3][:STEP])
        handle.remove()
        first_pass = len(calls)
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        with inject(model, Fault("grad", step=first_pass, value=value)):
            train(model, optimizer, schedule, batches)
    assert [a.step for a in watcher.actions] == [STEP] and skips(watcher), watcher.actions
    assert differences(wanted, leavings([model], [optimizer], [])) == []
    if schedule is not None:
        assert schedule.last_epoch == last_epoch


@pytest.mark.parametrize("site", ["loss", "input"])
def test_fault_in_loss_or_input_leaves_no_trace(site, tmp_path):
    wanted, _ = without_the_step("adam")
    model, optimizer, schedule, batches = build("adam")
    with sg.watch(model, optimizer, runs=tmp_path) as watcher, inject(model, Fault(site, step=STEP)):
        train(model, optimizer, schedule, batches)
    assert [(a.step, a.action) for a in watcher.actions] == [(STEP, "skip")]
    assert differences(wanted, leavings([model], [optimizer], [])) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("param", step=STEP, tensor="3.weight"),
        Fault("state", step=STEP, tensor="3.weight:exp_avg_sq"),
        Fault("state", step=STEP, tensor="3.weight:exp_avg"),
    ],
    ids=lambda f: f"{f.site}-{f.tensor}",
)
def test_poisoned_state_is_taken_back(fault, tmp_path):
    """The poison sits in the state: only going back to before it helps, and then nothing more is skipped."""
    model, optimizer, schedule, batches = build("adam")
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        with inject(model, fault, optimizer=optimizer):
            losses = train(model, optimizer, schedule, batches)
    rollbacks = [a for a in watcher.actions if a.action == "rollback"]
    assert len(rollbacks) == 1, watcher.actions
    assert all(a.step <= STEP + 20 for a in watcher.actions)
    assert len(skips(watcher)) <= 3
    state = leavings([model], [optimizer], losses[-200:])
    for part in (
        *model.parameters(),
        *model.buffers(),
        *(v for s in optimizer.state.values() for v in s.values()),
    ):
        assert bool(torch.isfinite(part).all())
    assert math.isfinite(float(state["losses"].sum()))


def test_poisoned_buffer_costs_one_step(tmp_path):
    """The buffers as they were after the last good step are at hand: one skip, no rollback."""
    wanted, _ = without_the_step("adam")
    model, optimizer, schedule, batches = build("adam")
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        with inject(model, Fault("buffer", step=STEP, tensor="1.running_var")):
            train(model, optimizer, schedule, batches)
    assert [(a.step, a.action) for a in watcher.actions] == [(STEP, "skip")]
    assert differences(wanted, leavings([model], [optimizer], [])) == []


def test_snapshot_that_is_gone_back_to_is_the_state_of_that_step(tmp_path):
    """Right after the rollback the run stands where it stood then, bit for bit."""
    model, optimizer, schedule, batches = build("adam")
    states = []
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        with inject(model, Fault("param", step=STEP, tensor="3.weight"), optimizer=optimizer):
            for i in range(STEPS):
                states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
                train(model, optimizer, schedule, batches[i : i + 1])
                rollback = [a for a in watcher.actions if a.action == "rollback"]
                if rollback:
                    break
    assert rollback
    back = int(rollback[0].details["steps_back"])
    wanted = states[i + 1 - back]
    # The loop's own scheduler call after the step has moved the rate once more; everything else is as it was.
    assert differences(wanted[0], model.state_dict()) == []
    assert differences(wanted[1]["state"], optimizer.state_dict()["state"]) == []


def test_persistent_nan_ends_in_a_stop_and_is_never_applied(tmp_path):
    model, optimizer, schedule, batches = build("adam")
    with pytest.raises(sg.GuardStop, match="rollbacks"), sg.watch(model, optimizer, runs=tmp_path) as watcher:
        with inject(model, Fault("grad", step=STEP, times=10_000)):
            train(model, optimizer, schedule, batches)
    assert watcher.close().stopped_by_guard
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_nan_loss_with_finite_gradients_is_reported_not_skipped(tmp_path):
    model, optimizer, schedule, batches = build("adam")
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        for step, (x, y) in enumerate(batches[:30]):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if step == 20:
                loss = loss + torch.tensor(NAN)
            loss.backward()
            optimizer.step()
    assert watcher.actions == []
    assert any(f.step == 20 and f.where == "loss" for f in watcher.findings)


def test_nan_in_one_optimizer_of_a_gan_skips_only_that_one(tmp_path):
    torch.manual_seed(0)
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    oa, ob = torch.optim.Adam(a.parameters()), torch.optim.Adam(b.parameters())
    with sg.watch([a, b], oa, ob, runs=tmp_path) as watcher:
        for step in range(30):
            for model, optimizer in ((a, oa), (b, ob)):
                optimizer.zero_grad()
                loss = model(torch.randn(8, 4)).square().mean() * (NAN if step == 10 and model is b else 1.0)
                loss.backward()
                optimizer.step()
    assert [(x.optimizer, x.step, x.action) for x in watcher.actions] == [(1, 10, "skip")]
    steps = [int(next(iter(o.state.values()))["step"]) for o in (oa, ob)]
    assert steps == [30, 29]


def test_nan_in_one_micro_batch_skips_the_whole_step(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = []
    with sg.watch(model, optimizer, runs=tmp_path) as watcher, inject(model, Fault("grad", step=4 * 10 + 2)):
        for _ in range(15):
            before.append(model.weight.detach().clone())
            for _ in range(4):
                (model(torch.randn(8, 4)).square().mean() / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [x.step for x in watcher.actions] == [10]
    assert torch.equal(before[11], before[10]) and not torch.equal(before[12], before[11])


def test_epoch_schedule_moves_on_after_a_skip(tmp_path):
    """A schedule that moves once per epoch has nothing to do with one skipped step."""
    model, optimizer, _, batches = build("momentum")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with sg.watch(model, optimizer, runs=tmp_path), inject(model, Fault("grad", step=19)):
        for epoch in range(4):
            for x, y in batches[epoch * 10 : epoch * 10 + 10]:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            schedule.step()
    assert schedule.last_epoch == 4
