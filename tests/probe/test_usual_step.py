"""What the probe leaves out of a usual step, against the slow and obvious way to the same answer."""

from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.probe.idle import CERTAIN, NO_RATE, PATIENCE, IdleSteps
from steadygrad.probe.loop_facts import LoopFacts
from steadygrad.probe.modes import CERTAIN as MODES_CERTAIN
from steadygrad.probe.names import name_parameters
from steadygrad.probe.norms import gradient_norms
from steadygrad.probe.reductions import Readings
from steadygrad.records import ActivationStats, Portrait, StepStats, TensorStats
from tests.probe.watching import Watching


# ---------------------------------------------------------------------- numbers on their way to the host
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [1, 9])
def test_norms_are_those_of_one_stacked_copy(dtype, number):
    grads = [torch.randn(7, n + 1, dtype=dtype) for n in range(number)]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    stacked = torch.stack(torch._foreach_norm(grads, 2, dtype=wide)).tolist()
    assert gradient_norms(grads).tolist() == stacked
    assert gradient_norms([None, *grads], 4.0)[1:].tolist() == [norm / 4.0 for norm in stacked]


def test_norms_of_gradients_with_a_graph_make_no_graph():
    weight = torch.randn(5, requires_grad=True)
    (grad,) = torch.autograd.grad(weight.pow(3).sum(), weight, create_graph=True)
    version = grad._version
    with torch.autograd.graph.saved_tensors_hooks(pytest.fail, pytest.fail):
        (norm,) = gradient_norms([grad])
    assert norm == float(torch.linalg.vector_norm(grad.detach())) and grad._version == version


def test_readings_are_those_of_one_copy():
    values = {
        dtype: torch.tensor(1.1, dtype=torch.float64).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }
    values[torch.int64] = torch.tensor(12345678901)
    readings = Readings()
    readings.add("value", values)
    stacked = torch.stack([value.to(torch.float64) for value in values.values()]).tolist()
    assert list(readings.to_host()["value"].values()) == stacked


def test_a_step_keeps_what_was_known_of_it():
    values = {f.name: object() for f in fields(StepStats)}
    later = {
        "applied": False,
        "tensors": (TensorStats(1, 2.0, 3.0, 4.0),),
        "activations": (ActivationStats("a", "b", 1.0),),
        "seconds": 0.5,
        "portrait": Portrait(),
    }
    stats = StepStats(**values)
    assert stats.with_outcome(**later) == replace(stats, **later)


# ---------------------------------------------------------------------- backward and step
@pytest.mark.parametrize(
    ("roots", "weights", "found"),
    [
        (lambda x: x.sum(), None, [6.0]),
        (lambda x: x.sum().reshape(1, 1), None, [6.0]),
        (lambda x: x * 2, torch.tensor([1.0, 0.0, 10.0]), [62.0]),
        (lambda x: [x * 2, x.sum(), x.prod()], [torch.ones(3), None, None], [12.0, 6.0, 6.0]),
        (lambda x: (root for root in [x.sum(), x.prod()]), None, [6.0, 6.0]),
    ],
)
def test_roots_are_told_as_numbers_without_a_graph(roots, weights, found):
    class Roots(Watching):
        def backward(self, roots):
            self.calls += roots

    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    model = nn.Linear(1, 1)
    with Roots(model, torch.optim.SGD(model.parameters(), lr=0.1)) as seen:
        torch.autograd.backward(roots(x), weights)
    assert [float(value) for value in seen.calls] == found
    assert all(value.shape == () and not value.requires_grad for value in seen.calls)
    assert x.grad is not None


def test_a_skip_is_that_of_the_optimizer_that_was_skipped():
    models = [nn.Linear(2, 1) for _ in range(2)]
    good, bad = (torch.optim.SGD(m.parameters(), lr=0.1) for m in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with Watching(models[0], good) as seen:
        seen._join.attach(bad)
        scaler.scale(models[0](torch.ones(1, 2)).sum()).backward()
        scaler.scale(models[1](torch.full((1, 2), torch.inf)).sum()).backward()
        scaler.step(good)
        scaler.step(bad)
    assert seen.calls == ["step", "amp"]


# ---------------------------------------------------------------------- mistakes of the loop
class SlowModes:
    """In a row: the steps of any optimizer with passes of which none saw the model in training mode.

    It is told once, if the model is still not in training mode at the step that decides.
    """

    def __init__(self, model):
        self.model, self.passes, self.in_a_row, self.judged, self.told = model, {}, 0, False, False

    def backward(self):
        for passes in self.passes.values():
            passes.append(self.model.training)

    def step(self, optimizer):
        passes = self.passes.get(optimizer, [])
        self.passes[optimizer] = []
        if passes and not self.judged:
            self.in_a_row = 0 if any(passes) else self.in_a_row + 1
            self.judged = self.in_a_row >= MODES_CERTAIN
            self.told = self.judged and not self.model.training
        return self.told


@pytest.mark.parametrize("seed", range(20))
def test_modes_of_passes_belong_to_the_steps_after_them(seed):
    draw = Random(seed)
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    params = list(model.parameters())
    optimizers = [torch.optim.SGD(params, lr=0.1) for _ in range(2)]
    for p in params:
        p.grad = torch.ones_like(p)
    infos = name_parameters(optimizers[0], 0, [model], 0)
    facts, slow, norms = LoopFacts(), SlowModes(model), np.ones(2)
    for _ in range(60):
        model.train(draw.random() < 0.4)
        for _ in range(draw.randrange(3)):
            facts.backward([], [model])
            slow.backward()
        optimizer = draw.choice(optimizers)
        facts.before_step(optimizer, params, infos, norms, [model])
        facts.after_step(optimizer)
        assert ("eval_mode" in {odd.kind for odd in facts.oddities()}) == slow.step(optimizer)


class SlowRates:
    """Steps in a row in which no group with a gradient has a rate; those without any gradient do not count."""

    def __init__(self):
        self.idle, self.moved, self.told = 0, False, 0

    def step(self, groups):
        rates = [abs(g["lr"]) >= NO_RATE for g in groups if any(p.grad is not None for p in g["params"])]
        if rates:
            self.moved |= any(rates)
            self.idle = 0 if any(rates) else self.idle + 1
            patient = not self.moved and any("initial_lr" in g for g in groups)
            self.told |= self.idle >= (PATIENCE if patient else CERTAIN)
        return bool(self.told)


@pytest.mark.parametrize("seed", range(30))
def test_rates_are_those_of_groups_with_gradients(seed):
    draw = Random(seed)
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in params], lr=0.1)
    if draw.random() < 0.5:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    infos = name_parameters(optimizer, 0, [], 0)
    fast, slow, found = IdleSteps(), SlowRates(), False
    for _ in range(150):
        for p, group in zip(params, optimizer.param_groups, strict=True):
            if draw.random() < 0.3:
                p.grad = None if draw.random() < 0.3 else torch.ones(2)
            if draw.random() < 0.2:
                group["lr"] = draw.choice([0.1, 0.0, -0.1, 1e-13])
        odd = fast.before_step(optimizer, params, infos, np.ones(2), draw.randrange(2))
        found |= "zero_lr" in {one.kind for one in odd}
        assert found == slow.step(optimizer.param_groups)


def test_the_first_gradient_that_comes_late_has_a_rate():
    """With a scheduler a rate of 0 is given time, but not after training; until then nothing had a gradient."""
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    idle, infos, found = IdleSteps(), name_parameters(optimizer, 0, [], 0), []
    for step in range(2 * CERTAIN + 1):
        p.grad = None if step < CERTAIN else torch.ones(2)
        optimizer.param_groups[0]["lr"] = 0.0 if step > CERTAIN else 0.1
        found += [(step, odd.kind) for odd in idle.before_step(optimizer, [p], infos, np.ones(1), 1)]
    assert found == [(CERTAIN - 1, "no_gradient"), (2 * CERTAIN, "zero_lr")]
