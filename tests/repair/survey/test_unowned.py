"""What a run differentiates and no optimizer holds, told only where it is so in the end."""

import copy
import json

import pytest
import torch
from torch import nn

from steadygrad.repair.survey.unowned import UnownedParameters
from tests.integrations.trainings import differences
from tests.repair.survey.watching import watched_by

pytestmark = pytest.mark.usefixtures("apart")


def net(width=4):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model, optimizers, surveyor, steps=3):
    """Told of the passes and steps as a trial tells them."""
    with watched_by(surveyor) as run:
        for _ in range(steps):
            loss = model(torch.randn(8, 4)).square().mean()
            run.backward([loss], [loss.detach()])
            loss.backward()
            for optimizer in optimizers:
                run.before_step(optimizer)
                optimizer.step()
                run.after_step(optimizer, True)
                optimizer.zero_grad()
    return json.loads(json.dumps(surveyor.found()))


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (copy.deepcopy, "copy", ["*model.parameters()"]),
        (lambda model: net(6), "replaced", ["*model.parameters()"]),
        (lambda model: nn.Sequential(*model[:2], nn.Linear(4, 1)), "copy", ["*model[2].parameters()"]),
        (lambda model: nn.Sequential(*model, nn.Linear(1, 1)), "forgotten", ["*model[3].parameters()"]),
    ],
)
def test_what_has_no_owner_is_named(make, kind, names):
    model = net()
    optimizer = sgd(model)
    model = make(model)
    (found,) = train(model, [optimizer], UnownedParameters())["models"]
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    lacking = [(k, list(p.shape)) for k, p in model.named_parameters() if id(p) not in held]
    assert found["kind"] == kind and found["count"] == len(lacking)
    assert list(zip(found["paths"], found["shapes"], strict=True)) == lacking
    assert found["idle"] == len(held - {id(p) for p in model.parameters()})
    assert (found["optimizer"], found["optimizers"]) == (0, 1)
    assert names in [named["params"] for named in found["names"]]


def test_a_single_parameter_is_named_by_itself():
    model = net()
    optimizer = torch.optim.SGD([*model[0].parameters(), model[2].weight], lr=0.1)
    (found,) = train(model, [optimizer], UnownedParameters())["models"]
    assert found["paths"] == ["2.bias"] and found["kind"] == "forgotten"
    assert ["model[2].bias"] in [named["params"] for named in found["names"]]


def test_nothing_is_told_of_a_sound_run_and_nothing_is_changed():
    results = []
    for surveyor in (UnownedParameters(), None):
        torch.manual_seed(0)
        model = net()
        optimizer = sgd(model)
        if surveyor is None:
            for _ in range(3):
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        else:
            assert train(model, [optimizer], surveyor) == {}
        results.append({**model.state_dict(), "rng": torch.get_rng_state()})
    assert differences(*results) == []


def test_a_run_with_the_mistake_goes_on_with_it():
    model = net()
    optimizer = sgd(model)
    model = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    assert train(model, [optimizer], UnownedParameters())
    assert differences(model.state_dict(), before) == []


def test_an_optimizer_that_is_built_a_little_later_is_its_owner():
    model, surveyor = net(), UnownedParameters()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    assert train(model, [first], surveyor)["models"]
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    assert train(model, [first, second], surveyor) == {}


def test_weights_with_gradients_made_by_hand_are_no_strays():
    model, surveyor = net(), UnownedParameters()
    full = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    optimizer = torch.optim.SGD(full, lr=0.1)
    for p in full:
        p.grad = torch.zeros_like(p)
    with watched_by(surveyor) as run:
        loss = model(torch.randn(8, 4)).sum()
        run.backward([loss], [loss.detach()])
        assert surveyor.found()
        run.before_step(optimizer)
    assert surveyor.found() == {}
