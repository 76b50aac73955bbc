"""A run whose steps another optimizer takes equals the script that builds that optimizer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under

STEPS = 24


def train(make, schedule=None, *, later=False, scaled=False, closure=False, by_hand=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    grown = nn.Linear(2, 2)
    optimizer = make(model)
    scheduler = schedule(optimizer) if schedule else None
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for i in range(STEPS):
        if later and i == 10:
            optimizer.add_param_group({"params": grown.parameters()})
        if by_hand:
            optimizer.param_groups[0]["lr"] = by_hand(i)
        x, y = torch.randn(8, 6), torch.randn(8, 2)

        def evaluate():
            optimizer.zero_grad()
            out = model(x)  # noqa: B023 - called in this iteration
            loss = F.mse_loss(grown(out) if later and i >= 10 else out, y)  # noqa: B023
            scaler.scale(loss).backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            scaler.step(optimizer)
            scaler.update()
        if scheduler:
            scheduler.step()
    return {f"{n}.{k}": v.clone() for n, m in (("m", model), ("g", grown)) for k, v in m.state_dict().items()}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.9)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=2**-8)


def adamw_for_sgd(model):
    return torch.optim.AdamW(model.parameters(), lr=2**-8, weight_decay=0.02)


ADAMW = {"optimizer": {"name": "AdamW", "lr": 2**-8, "weight_decay": 0.02}}


def exponential(optimizer):
    return lr_scheduler.ExponentialLR(optimizer, 0.9)


def one_cycle(max_lr, **more):
    return lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=STEPS + 1, **more)


def cyclic(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 5))


@pytest.mark.parametrize(
    ("schedule", "edited"),
    [
        (None, None),
        (exponential, exponential),
        (cyclic, cyclic),
        (one_cycle(0.08), one_cycle(2**-8)),
        (one_cycle(0.08, cycle_momentum=False), one_cycle(2**-8, cycle_momentum=False)),
    ],
    ids=["none", "Exponential", "Lambda", "OneCycle", "OneCycle without momentum"],
)
def test_equals_the_script_that_builds_it(schedule, edited):
    with under(ADAMW) as run:
        changed = train(sgd, schedule)
    assert differences(changed, train(adamw_for_sgd, edited)) == []
    assert set(run.verdicts) == {"taken"} and run.built == 1, "the new optimizer is not taken for the user's"
    assert differences(changed, train(sgd, schedule)) != []


@pytest.mark.parametrize("momentum", [True, False])
def test_equals_it_in_the_other_direction(momentum):
    plan = {"optimizer": {"name": "SGD", "lr": 0.0625, "momentum": 0.9}}
    with under(plan):
        changed = train(adamw, one_cycle(2**-8, cycle_momentum=momentum))
    by_hand = train(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.0625, momentum=0.9),
        one_cycle(0.0625, cycle_momentum=momentum),
    )
    assert differences(changed, by_hand) == []


def test_it_follows_groups_that_come_later():
    with under(ADAMW):
        changed = train(sgd, later=True)
    assert differences(changed, train(adamw_for_sgd, later=True)) == []


def test_it_follows_a_rate_that_the_loop_sets_by_hand():
    """Also one that begins low: what was built with 0.08 has the new rate where the loop sets 0.08."""
    with under(ADAMW):
        changed = train(sgd, by_hand=lambda i: 0.08 * min(1.0, (i + 1) / 8))
    assert differences(changed, train(adamw_for_sgd, by_hand=lambda i: 2**-8 * min(1.0, (i + 1) / 8))) == []


@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler_has_no_part_in_its_gradients(fused):
    with under(ADAMW):
        changed = train(lambda m: torch.optim.SGD(m.parameters(), lr=0.08, fused=fused), scaled=True)
    assert differences(changed, train(adamw_for_sgd, scaled=True)) == []


def test_a_closure_is_evaluated_once():
    with under(ADAMW):
        changed = train(lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5), closure=True)
    assert differences(changed, train(adamw_for_sgd, closure=True)) == []


def test_a_factor_for_the_rate_reaches_it():
    with under({**ADAMW, "lr_factor": 0.25}):
        changed = train(sgd, exponential)
    by_hand = train(lambda m: torch.optim.AdamW(m.parameters(), lr=2**-10, weight_decay=0.02), exponential)
    assert differences(changed, by_hand) == []


def test_a_group_keeps_its_own_weight_decay_and_direction():
    change = Change({"optimizer": {"name": "SGD", "lr": 1.0}})
    a, b, c = (torch.ones(1, requires_grad=True) for _ in range(3))
    groups = [{"params": [a], "weight_decay": 0.5}, {"params": [b]}, {"params": [c], "maximize": True}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    for p in (a, b, c):
        p.grad = torch.full((1,), 0.25)
    assert change.before_step(optimizer) == "taken"
    assert [p.item() for p in (a, b, c)] == [0.25, 0.75, 1.25]


def test_a_sparse_gradient_is_refused_before_anything_is_changed():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters())
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(NotApplicable, match="sparse"):
        Change(ADAMW).before_step(optimizer)
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize(
    "value",
    [
        3.0,
        {},
        {"name": "LBFGS", "lr": 1.0},
        {"name": "Adam"},
        {"name": "Adam", "lr": -1.0},
        {"name": "SGD", "lr": 1.0, "amsgrad": 1},
    ],
    ids=str,
)
def test_a_value_that_means_nothing_is_refused(value):
    with pytest.raises(NotApplicable):
        Change({"optimizer": value})
