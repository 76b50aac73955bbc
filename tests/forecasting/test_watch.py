"""``FirstSteps`` in a loop that knows nothing of it: when it has seen enough, and what happens when it fails."""

import pytest
import torch
from torch import nn

from steadygrad.forecasting.watch import FirstSteps

F = nn.functional


class Stopped(BaseException):
    """What ``steadygrad check`` does by ending the process."""


class Loop:
    """A training that counts its steps, under a listener to every optimizer."""

    def __init__(self, steps=3, **options):
        torch.manual_seed(0)
        self.forecasts, self.errors, self.taken = [], [], 0
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.watcher = FirstSteps(steps, self.enough, failed=self.errors.append, **options)
        self.x, self.y = torch.randn(32, 8), torch.randint(0, 3, (32,))

    def enough(self, forecast):
        self.forecasts.append(forecast)
        raise Stopped

    def __enter__(self):
        self.watcher.joinpoints.install(all_optimizers=True)
        return self

    def __exit__(self, *_):
        self.watcher.joinpoints.remove()
        self.watcher.locator.close()
        self.watcher.probe.close()

    def step(self, optimizer, scale=1.0):
        optimizer.zero_grad()
        (scale * F.cross_entropy(self.model(self.x), self.y)).backward()
        optimizer.step()
        self.taken += 1

    def until_stopped(self, *optimizers, most=8):
        with pytest.raises(Stopped):
            for _ in range(most):
                for optimizer in optimizers:
                    self.step(optimizer)
        return self.forecasts[0]


def test_it_has_seen_enough_after_the_steps_it_was_asked_for():
    with Loop(steps=3) as loop:
        found = loop.until_stopped(torch.optim.SGD(loop.model.parameters(), lr=0.1))
    assert (found.steps_seen, loop.taken, loop.errors) == (3, 2, []) and not found.will_fail
    # Other models of this process may be alive: names then begin with which of them it is.
    assert [".".join(row.name.split(".")[-2:]) for row in found.layers] == ["0.weight", "2.weight"]


def test_an_optimizer_that_is_never_used_is_not_waited_for():
    with Loop(steps=2) as loop:
        idle = [torch.optim.SGD(loop.model.parameters(), lr=10.0) for _ in range(3)]
        found = loop.until_stopped(torch.optim.SGD(loop.model.parameters(), lr=0.1))
        assert found.steps_seen == 2 and found.layers and loop.errors == []
        del idle


def test_a_backward_pass_before_there_is_an_optimizer():
    with Loop(steps=2) as loop:
        F.cross_entropy(loop.model(loop.x), loop.y).backward()
        found = loop.until_stopped(torch.optim.SGD(loop.model.parameters(), lr=0.1))
    assert found.sharpness > 0 and found.lr_limit > 0


def test_each_of_two_optimizers_counts_its_own_steps():
    with Loop(steps=2) as loop:
        first = torch.optim.SGD(loop.model[0].parameters(), lr=0.1)
        second = torch.optim.Adam(loop.model[2].parameters(), lr=0.001)
        assert loop.until_stopped(first, second).steps_seen == 2
    assert loop.taken == 2  # one of each, and the one that was the second of its kind


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_factor_of_a_gradient_scaler_is_taken_out_of_the_curvature(adaptive):
    found = []
    for enabled in (False, True):
        with Loop(steps=1) as loop:
            make = torch.optim.Adam if adaptive else torch.optim.SGD
            optimizer = make(loop.model.parameters(), lr=0.01)
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
            with pytest.raises(Stopped):
                scaler.scale(F.cross_entropy(loop.model(loop.x), loop.y)).backward()
                scaler.step(optimizer)
            found.append(loop.forecasts[0])
    assert found[1].sharpness == pytest.approx(found[0].sharpness, rel=1e-3)
    assert found[1].lr_limit == pytest.approx(found[0].lr_limit, rel=1e-3)


PLACES = {
    "rules": lambda w: (w.rules, "observe"),
    "probe before": lambda w: (w.probe, "before"),
    "probe after": lambda w: (w.probe, "after"),
    "graph": lambda w: (w.probe, "saw_graph"),
    "backward": lambda w: (w.probe, "saw_backward"),
    "clip": lambda w: (w.probe, "saw_clip"),
    "locator": lambda w: (w.locator, "after_step"),
    "locator before": lambda w: (w.locator, "before_backward"),
    "forecast": lambda w: (w.casefile, "facts"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_ours_never_reaches_the_loop(place, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("ours")

    def train(loop):
        optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(loop.model(loop.x), loop.y).backward()
            nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
            optimizer.step()
        return [p.detach().clone() for p in loop.model.parameters()]

    plain = train(Loop())
    with Loop(steps=3) as loop:
        monkeypatch.setattr(*PLACES[place](loop.watcher), broken)
        watched = train(loop)
        assert [str(e) for e in loop.errors] == ["ours"] and loop.forecasts == []
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_the_user_s_own_exception_passes_through():
    class Bad(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyError("mine")

    with Loop() as loop, pytest.raises(KeyError, match="mine"):
        loop.step(Bad(loop.model.parameters(), lr=0.1))
    assert loop.errors == []


def test_no_forecast_without_a_step():
    with pytest.raises(ValueError, match="no optimizer step was seen"):
        FirstSteps(3, print, failed=print).forecast()
