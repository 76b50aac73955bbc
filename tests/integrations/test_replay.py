"""Repeat a training in this process: the planted cause is confirmed, whatever else a change would cure."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.diagnose.interventions import Intervention
from steadygrad.integrations.investigation import TRAINED
from steadygrad.integrations.replay import replay


@pytest.fixture(autouse=True)
def few_objects():
    """Models are looked for among all objects of the process: leave those of the test runner out."""
    gc.collect()
    gc.freeze()


def classifying(lr=0.1, *, momentum=0.0, nan_at=None, reduction="mean", steps=60):
    """A training that seeds nothing: each run must start from the same generators to be comparable."""

    def training():
        y = torch.randint(0, 4, (256,))
        x = torch.randn(4, 16)[y] * 2 + torch.randn(256, 16)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        for i in range(steps):
            rows = torch.randint(0, 256, (64,))
            batch = x[rows].clone()
            if i == nan_at:
                batch[0, 0] = math.nan
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), y[rows], reduction=reduction)
            loss.backward()
            optimizer.step()
            yield loss.item()

    return training


def fitting_raw_columns():
    x = torch.rand(256, 8) * 200
    y = (x[:, :1] - 100) / 50
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(100):
        rows = slice(32 * (i % 8), 32 * (i % 8) + 32)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        yield loss.item()


def confirmed(found):
    return [c.cause for c in found.causes if "; confirmed: " in c.message]


def named(found):
    return {arm.intervention.name: arm.recovered for arm in found.arms}


def test_a_healthy_training_has_no_causes():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = replay(classifying())
    assert (found.causes, found.arms, found.notes) == ((), (), (TRAINED,))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_hundredfold_rate():
    torch.manual_seed(0)
    found = replay(classifying(lr=10.0, momentum=0.9))
    assert found.causes[0].cause == "lr_too_large" and confirmed(found)[0] == "lr_too_large"
    assert named(found)["lr / 10"] is True


def test_a_batch_with_a_nan():
    torch.manual_seed(0)
    found = replay(classifying(nan_at=30, steps=90))
    assert "bad_batch" in confirmed(found)
    assert named(found)["skip odd steps"] is True
    skipped = next(a.outcome.skipped for a in found.arms if a.intervention.name == "skip odd steps")
    assert skipped == pytest.approx(1 / 90)


def test_a_summed_loss():
    torch.manual_seed(0)
    found = replay(classifying(momentum=0.9, reduction="sum"))
    assert found.causes[0].cause == "loss_reduction" and "loss_reduction" in confirmed(found)
    assert named(found)["loss / 64"] is True


def test_raw_inputs():
    torch.manual_seed(0)
    found = replay(fitting_raw_columns)
    assert found.causes[0].cause == "unscaled_inputs" and "unscaled_inputs" in confirmed(found)
    assert named(found)["inputs standardised"] is True


def test_changes_of_ones_own_and_a_bound():
    torch.manual_seed(0)
    change = Intervention("lr / 1", ("lr_too_large",), {"lr_factor": 1.0})
    found = replay(classifying(lr=10.0), [change], steps=40)
    (arm,) = found.arms
    assert (found.twin.steps, arm.recovered) == (40, False)
    twin = found.twin.facts.verdict
    assert (twin.start, repr(twin.end)) == (arm.outcome.verdict.start, repr(arm.outcome.verdict.end))
    cause = next(c for c in found.causes if c.cause == "lr_too_large")
    assert "; not confirmed: with lr / 1 it does not train" in cause.message


def test_an_arm_that_raises_is_told_and_a_training_without_steps_is_an_error():
    calls = []

    def raises():
        calls.append(1)
        if len(calls) > 1:
            raise LookupError("no second time")
        return classifying(lr=10.0, momentum=0.9)()

    found = replay(raises)
    assert [(a.outcome, a.note) for a in found.arms] == [(None, "LookupError: no second time")] * len(
        found.arms
    )
    assert found.arms and not confirmed(found) and found.causes
    with pytest.raises(ValueError, match=r"took no optimizer step: make_training\(\) must"):
        replay(lambda: iter([1.0]))
