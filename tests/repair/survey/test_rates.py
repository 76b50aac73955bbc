import pytest
import torch
from torch.optim import lr_scheduler

from steadygrad.repair.effects.change import Change
from steadygrad.repair.survey.rates import Rates


def survey(make_schedule, steps=20):
    surveyor = Rates()
    change = Change({}, more=[surveyor])
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.4)
    scheduler = make_schedule(optimizer)
    for _ in range(steps):
        change.before_step(optimizer)
        optimizer.step()
        change.after_step(optimizer, True)
        scheduler.step()
    return surveyor.found()


def test_the_first_highest_lowest_and_usual_rate():
    found = survey(lambda o: lr_scheduler.LambdaLR(o, lambda i: 1 if i < 5 else 3 if i == 5 else 0.01))
    assert found == {"first": 0.4, "highest": pytest.approx(1.2), "lowest": 0.004, "usual": 0.004}


def test_nothing_is_known_before_the_first_step():
    assert Rates().found() == {}
