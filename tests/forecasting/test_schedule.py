"""How high a schedule goes, read without stepping it."""

import math

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from steadygrad.forecasting.schedule import largest_lr


def optimizer(lr=0.1, groups=1):
    return SGD([{"params": [torch.zeros(2, requires_grad=True)]} for _ in range(groups)], lr=lr)


def warm_up(step):
    return min(1.0, (step + 1) / 500) * 0.5 ** (step / 2000)


def noam(step):
    return min((step + 1) ** -0.5, (step + 1) * 4000**-1.5)


CASES = {
    "constant": (lambda o: None, 0.1),
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 10), 0.1),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 2.0, total_steps=50), 2.0),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 1e-4, 0.7, cycle_momentum=False), 0.7),
    "LambdaLR warm-up": (lambda o: lr_scheduler.LambdaLR(o, warm_up), 0.1 * max(map(warm_up, range(3000)))),
    "LambdaLR, late peak": (lambda o: lr_scheduler.LambdaLR(o, noam), 0.1 * max(map(noam, range(9000)))),
    "LambdaLR that ends": (lambda o: lr_scheduler.LambdaLR(o, [1.0, 3.0, 2.0].__getitem__), 0.3),
    "LinearLR": (lambda o: lr_scheduler.LinearLR(o, start_factor=0.01), 0.1),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 20), 0.1),
    "warm restarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7), 0.1),
    "plateau": (lambda o: lr_scheduler.ReduceLROnPlateau(o), 0.1),
    "sequence": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.001), lr_scheduler.CosineAnnealingLR(o, 9)], milestones=[5]
        ),
        0.1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_found_and_nothing_moves(name):
    make, peak = CASES[name]
    o = optimizer()
    schedule = make(o)
    before = state(o, schedule)
    assert largest_lr(o) == pytest.approx(peak, rel=0.01)
    assert state(o, schedule) == before


def state(o, schedule):
    rates = [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups]
    return repr(rates), repr(vars(schedule)) if schedule else ""


def test_the_peak_is_found_in_the_middle_of_a_run():
    o = optimizer()
    schedule = lr_scheduler.OneCycleLR(o, 2.0, total_steps=50)
    for _ in range(45):
        o.step()
        schedule.step()
    assert o.param_groups[0]["lr"] < 0.2 and largest_lr(o) == 2.0


def test_the_largest_of_several_groups():
    o = optimizer(groups=2)
    o.param_groups[1]["lr"] = 0.4
    assert largest_lr(o) == 0.4
    schedule = lr_scheduler.LambdaLR(o, [lambda s: 1.0, lambda s: 1.0 + s if s < 5 else 0.0])
    assert largest_lr(o) == pytest.approx(2.0)
    del schedule


def test_the_schedule_of_another_optimizer_counts_for_nothing():
    o, other = optimizer(), optimizer()
    schedule = lr_scheduler.OneCycleLR(other, 5.0, total_steps=10)
    assert largest_lr(o) == 0.1
    del schedule


def test_a_formula_that_blows_up_gives_no_infinite_rate():
    o = optimizer()
    schedule = lr_scheduler.LambdaLR(o, lambda s: math.inf if s > 10 else 2.0)
    assert largest_lr(o) == pytest.approx(0.2)
    del schedule


def test_an_optimizer_without_a_rate():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    assert math.isnan(largest_lr(Plain([torch.zeros(1, requires_grad=True)])))


def test_a_rate_that_is_a_tensor():
    o = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=torch.tensor(0.25))
    assert largest_lr(o) == 0.25
