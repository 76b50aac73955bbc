"""A step that is skipped leaves no trace; only odd ones are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, under

STEPS, BAD = 14, 11

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
}


def train(make, *, by_hand=False, batch_norm=True, bad=BAD, value=math.nan):
    """Trains with one bad batch. By hand: its step is not called, and the buffers are put back."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
    model = nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Linear(8, 2))
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    losses = []
    for i in range(STEPS):
        x, y = torch.randn(8, 6), torch.randn(8, 2)
        if i == bad:
            x[0, 0] = value

        def closure():
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)  # noqa: B023 - called in this iteration
            loss.backward()
            return loss

        kept = {k: v.clone() for k, v in model.named_buffers()}
        if i == bad and by_hand:
            losses.append(closure().item())
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
            optimizer._opt_called = True  # or the scheduler warns
        elif isinstance(optimizer, torch.optim.LBFGS):
            losses.append(optimizer.step(closure).item())
        else:
            losses.append(closure().item())
            optimizer.step()
        schedule.step()
    return {**leavings(model, optimizer), "losses": torch.tensor(losses)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_is_as_if_it_had_not_been_called(name):
    by_hand = train(OPTIMIZERS[name], by_hand=True)
    with under({"skip_nonfinite": 1}) as run:
        skipped = train(OPTIMIZERS[name])
    assert differences(skipped, by_hand) == []
    assert [i for i, verdict in enumerate(run.verdicts) if verdict == "skip"] == [BAD]
    assert all(t.isfinite().all() for t in skipped["model"].values()), "running statistics are put back"


@pytest.mark.parametrize("plan", [{"skip_nonfinite": 1}, {"skip_above": 1e9}])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "LBFGS"])
def test_nothing_is_changed_where_nothing_is_odd(plan, name):
    plain = train(OPTIMIZERS[name], bad=None)
    with under(plan):
        assert differences(train(OPTIMIZERS[name], bad=None), plain) == []


def test_a_loss_that_is_nan_with_finite_gradients_is_skipped():
    with under({"skip_nonfinite": 1}) as run:
        w = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1.0)
        (w[0] + w.detach()[1] * math.nan).backward()
        assert w.grad.isfinite().all()
        optimizer.step()
        assert w.tolist() == [1.0, 1.0] and run.verdicts == ["skip"]
        assert w.grad.tolist() == [0.0, 0.0], "the next gradients must not be added to what was left out"
        (w[0] * 1.0).backward()
        optimizer.step()
        assert w.tolist() == [0.0, 1.0], "and the next loss is not blamed for it"


def test_a_norm_that_only_overflows_float32_is_finite():
    with under({"skip_nonfinite": 1}) as run:
        w = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1e-25)
        (w.sum() * 1e25).backward()
        optimizer.step()
        assert run.verdicts == ["take"]


def steps_of(sizes, **plan):
    """What becomes of steps whose gradients have these norms."""
    with under(plan) as run:
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.0)
        for size in sizes:
            optimizer.zero_grad()
            (w * size).sum().backward()
            optimizer.step()
    return [i for i, verdict in enumerate(run.verdicts) if verdict == "skip"]


def test_a_norm_far_out_of_the_usual_is_skipped_once_norms_are_known():
    usual = [1.0, 2.0] * 5
    assert steps_of([*usual, 31.0, 1.0, 19.0, 31.0], skip_above=20.0) == [10, 13]  # medians 1.5, 1, 1.5
    assert steps_of([*usual[:9], 1e6], skip_above=20.0) == []
    assert steps_of([*usual, math.inf], skip_above=20.0) == [10], "what is not finite never passes"


def test_three_in_a_row_at_most_are_skipped():
    assert steps_of([1.0] * 10 + [100.0] * 6, skip_above=20.0) == [10, 11, 12, 14]


def test_outliers_that_are_many_are_none():
    sizes = [1.0] * 10 + [100.0, 1.0] * 20
    assert steps_of(sizes, skip_above=20.0) == [10, 12, 14, 16]
    assert steps_of([*sizes, math.nan], skip_above=20.0) == [10, 12, 14, 16, 50]
    assert steps_of([1.0] * 600 + [100.0, 1.0] * 5, skip_above=20.0) == [600, 602, 604, 606, 608], (
        "1 % of all"
    )


def test_the_scale_of_a_scaler_is_no_gradient():
    """A fused optimizer gets scaled gradients; a scale that has doubled six times is no outlier."""
    with under({"skip_above": 20.0}) as run:
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=12, growth_factor=64.0)
        for _ in range(16):
            optimizer.zero_grad()
            scaler.scale(w.sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert run.verdicts == ["take"] * 16
    assert scaler.get_scale() == 256.0
