"""Schedules under the guard: what a skipped step and a rollback do to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.guard.schedule import ScheduleKeeper
from steadygrad.guard.state import find_schedulers
from steadygrad.schedule import BackOff, warmup
from steadygrad.testing import Fault, inject


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Theirs:
    """A schedule of another library that counts in a way of its own."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


Theirs.__name__ = "NoamScheduler"


def train(faults, make, steps=30):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    made = make(optimizer)
    with sg.watch(model, optimizer) as run, inject(model, *faults):
        for _ in range(steps):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    return run, made


def test_a_warm_up_goes_back_with_a_rollback_and_stays_at_a_skip():
    run, ramp = train([Fault("grad", step=7), Fault("param", step=20)], lambda o: warmup(o, 100))
    assert [a.action for a in run.actions] == ["skip", "skip", "rollback"]
    adam = next(iter(ramp.optimizer.state.values()))
    assert ramp.num_steps == adam["step"] < 28  # both count the steps that the weights have behind them
    plain, counted = train([], lambda o: warmup(o, 100))
    assert plain.actions == [] and counted.num_steps == 30


def test_a_back_off_is_not_undone_by_a_rollback():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    ramp, back_off = warmup(optimizer, 10), BackOff(optimizer)
    assert find_schedulers([optimizer]) == [ramp] and back_off.optimizer is optimizer


def test_a_schedule_without_a_count_does_not_disarm():
    run, theirs = train([Fault("grad", step=7)], Theirs)
    assert [a.action for a in run.actions] == ["skip"] and theirs.calls == 0


def test_the_recorded_rate_is_the_one_that_was_used():
    run, _ = train([], lambda o: warmup(o, 4), steps=6)
    _, rates = sg.Run(run.run_dir).scalar("lr")
    assert list(rates) == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


class Remembering:
    """A factor on the learning rate that holds a tensor, which torch makes part of the scheduler's state."""

    def __init__(self):
        self.weights = torch.ones(3)

    def __call__(self, step):
        return 1.0


def test_only_a_schedule_of_a_few_numbers_is_kept_in_every_step():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1, momentum=0.9)
    kinds = torch.optim.lr_scheduler
    light = [
        kinds.CosineAnnealingLR(optimizer, 10),
        kinds.OneCycleLR(optimizer, 0.1, total_steps=10),
        kinds.LambdaLR(optimizer, lambda step: 1.0),
        kinds.MultiStepLR(optimizer, [3, 5]),
    ]
    keeper = ScheduleKeeper()
    assert keeper.light(optimizer, []) and keeper.light(optimizer, light)
    assert not keeper.light(optimizer, [*light, kinds.LambdaLR(optimizer, Remembering())])
