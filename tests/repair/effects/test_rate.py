"""A run whose rate is changed at each step equals the script that was written with that rate."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, under

STEPS = 24


def train(schedule=None, *, lr=0.08, by_hand=lambda i, lr: lr, optimizer="SGD", bad=None, between=None):
    """``by_hand(step, rate)``: the rate that an edited script steps with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    made = {"SGD": {"momentum": 0.9}, "AdamW": {}}[optimizer]
    optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=lr, **made)
    scheduler = schedule(optimizer) if schedule else None
    rates = []
    for i in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(8, 6) * (float("nan") if i == bad else 1)
        F.mse_loss(model(x), torch.randn(8, 2)).backward()
        usual = optimizer.param_groups[0]["lr"]
        rates.append(usual)
        optimizer.param_groups[0]["lr"] = by_hand(i, usual)
        if i == bad and between:
            optimizer._opt_called = True
        else:
            optimizer.step()
        optimizer.param_groups[0]["lr"] = usual
        if scheduler:
            scheduler.step()
    return {**leavings(model, optimizer)["model"], "rates": rates}


def one_cycle(factor=1.0):
    return lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.08 * factor, total_steps=STEPS + 1)


SCHEDULES = {
    "none": lambda factor: None,
    "Exponential": lambda factor: lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "OneCycle": one_cycle,
    "WarmRestarts": lambda factor: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "Chained": lambda factor: (
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.LinearLR(o, 0.5, total_iters=4), lr_scheduler.StepLR(o, 7, 0.5)]
        )
    ),
}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_factor_equals_the_script_with_the_other_rate(name, optimizer):
    factor = 0.25  # exact in binary, so that any difference is ours
    edited = train(SCHEDULES[name](factor), lr=0.08 * factor, optimizer=optimizer)
    plain = train(SCHEDULES[name](1.0), optimizer=optimizer)
    with under({"lr_factor": factor}):
        changed = train(SCHEDULES[name](1.0), optimizer=optimizer)
    assert changed["rates"] == plain["rates"], "the script sees its own rate"
    edited["rates"] = changed["rates"]
    assert differences(changed, edited) == []
    assert differences(changed, plain) != []


@pytest.mark.parametrize(
    ("plan", "by_hand"),
    [
        ({"warmup_steps": 5}, lambda i, lr: lr * min(1.0, (i + 1) / 5)),
        ({"lr_decay": STEPS}, lambda i, lr: lr * min(1.0, max(0.02, 2 * (1 - i / STEPS)))),
        ({"lr_decay": 10}, lambda i, lr: lr * min(1.0, max(0.02, 2 * (1 - i / 10)))),
        ({"lr_cap": 3.0}, lambda i, lr: min(lr, 3.0 * (0.08 / 25))),
        (
            {"lr_cap": 3.0, "warmup_steps": 4},
            lambda i, lr: min(lr, 3.0 * (0.08 / 25)) * min(1.0, (i + 1) / 4),
        ),
    ],
    ids=["warm-up", "decay", "short decay", "cap", "cap and warm-up"],
)
def test_a_shape_equals_the_script_with_that_shape(plan, by_hand):
    edited = train(one_cycle(), by_hand=by_hand)
    with under(plan):
        changed = train(one_cycle())
    assert differences(changed, edited) == []
    assert differences(changed, train(one_cycle())) != []


def test_a_decay_ends_at_two_percent_of_the_rate():
    change, seen = Change({"lr_decay": 100}), []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for _ in range(103):
        change.before_step(optimizer)
        seen.append(optimizer.param_groups[0]["lr"])
        change.after_step(optimizer, True)
    assert seen[:51] == [1.0] * 51 and seen[75] == 0.5 and seen[100:] == [0.02] * 3


def test_the_rate_rises_anew_after_a_restart_and_after_a_skip():
    restarts = SCHEDULES["WarmRestarts"](1.0)
    plain = train(restarts)["rates"]
    after = {5: 0, 10: 0, 15: 0, 20: 0}
    seen = []

    def by_hand(i, lr):
        since = min(
            (i - start for start in [*after, 8] if start <= i), default=9
        )  # 8: the step after the skip
        seen.append(min(1.0, (since + 1) / 3))
        return lr * seen[-1]

    edited = train(restarts, by_hand=by_hand, bad=7, between="skipped")
    with under({"rewarm_steps": 3, "skip_nonfinite": 1}):
        changed = train(restarts, bad=7)
    assert differences(changed, edited) == []
    assert changed["rates"] == plain and seen[5:11] == [1 / 3, 2 / 3, 1.0, 1 / 3, 2 / 3, 1 / 3]


def test_nothing_is_changed_by_shapes_that_do_not_apply():
    with under({"rewarm_steps": 5, "lr_cap": 10.0, "lr_factor": 1.0, "lr_decay": 10**6}):
        changed = train()
    assert differences(changed, train()) == []


def test_what_a_step_that_raised_was_given_is_given_back():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            raise LookupError(self.param_groups[0]["lr"])

    with under({"lr_factor": 0.5, "momentum": 0.5, "lr_cap": 1.0, "warmup_steps": 2}):
        w = torch.ones(1, requires_grad=True)
        optimizer = Raises([w], lr=1.0, momentum=0.95)
        for _ in range(2):
            w.sum().backward()
            with pytest.raises(LookupError, match=r"^0\.25$"):  # not taken: the warm-up has not moved on
                optimizer.step()
            assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (1.0, 0.95)


def test_a_rate_in_a_tensor_is_given_back_as_the_same_tensor():
    lr = torch.tensor(0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, foreach=False)
    change = Change({"lr_factor": 0.5, "lr_cap": 1.0})
    for wanted in (0.25, 0.25):
        change.before_step(optimizer)
        assert optimizer.param_groups[0]["lr"].item() == wanted
        change.after_step(optimizer, True)
        assert optimizer.param_groups[0]["lr"] is lr
        lr.mul_(2)  # the cap holds


@pytest.mark.parametrize("key", ["lr_factor", "warmup_steps", "lr_cap", "lr_decay", "rewarm_steps"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), None, True])
def test_a_value_that_means_nothing_is_refused(key, value):
    with pytest.raises(NotApplicable, match=key):
        Change({key: value})


def test_a_rate_that_a_schedule_lets_fall_keeps_above_the_floor():
    def schedule(optimizer):
        return lr_scheduler.ExponentialLR(optimizer, 0.5)

    with under({"lr_floor": 0.3}):
        one = train(schedule)
    other = train(schedule, by_hand=lambda i, lr: max(lr, 0.3 * 0.08))
    assert not differences(one, other)
    assert one["rates"][-1] == pytest.approx(0.08 * 0.5 ** (STEPS - 1)), (
        "the script goes on reading its own rate"
    )
