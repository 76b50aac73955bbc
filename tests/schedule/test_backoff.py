"""Back-off and re-warm-up: a plain list of factors as oracle, compounding with a bound, exact resumption."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from steadygrad.schedule import BackOff, back_off_factor, cosine_warmup, effective_lr, warmup


def sgd(lr: float = 1.0) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def walk(back_off: BackOff, steps: int, incidents: dict[int, int] | None = None) -> list[float]:
    """The factor of each step; ``incidents``: step -> how many right before it."""
    seen = []
    for step in range(steps):
        for _ in range((incidents or {}).get(step, 0)):
            back_off.incident()
        seen += back_off.factors()
        back_off.optimizer.step()
    return seen


def test_low_held_and_back():
    back_off = BackOff(sgd(), factor=0.4, hold_steps=3, rewarm_steps=4)
    seen = walk(back_off, 12, {2: 1})
    rise = [0.4 + 0.6 * k / 4 for k in (1, 2, 3)]
    assert seen == pytest.approx([1.0] * 2 + [0.4] * 3 + rise + [1.0] * 4)
    assert seen[8:] == [1.0] * 4  # exactly


def test_incidents_compound_from_where_the_rate_is_and_stop_at_the_bound():
    back_off = BackOff(sgd(), factor=0.5, hold_steps=1, rewarm_steps=4, min_factor=0.2)
    assert [back_off.incident() for _ in range(4)] == [0.5, 0.25, 0.2, 0.2]
    for _ in range(3):
        back_off.optimizer.step()
    now = back_off.factors()[0]
    assert now == pytest.approx(0.2 + 0.8 * 3 / 4)
    assert back_off.incident() == now * 0.5 and back_off.num_incidents == 5


def test_without_hold_the_next_step_is_already_on_its_way_back():
    back_off = BackOff(sgd(), hold_steps=0, rewarm_steps=4)
    assert back_off.incident() == 0.5 + 0.5 / 4 == back_off.factors()[0]


def test_after_full_recovery_it_starts_anew():
    back_off = BackOff(sgd(), hold_steps=1, rewarm_steps=1, max_incidents=2)
    walk(back_off, 5, {0: 2})
    assert back_off.incident() == 0.5
    back_off.incident()
    before = back_off.state_dict()
    with pytest.raises(RuntimeError, match="2 incidents and no recovery"):
        back_off.incident()
    assert back_off.state_dict() == before


def test_for_good():
    back_off = BackOff(sgd(), factor=0.9, hold_steps=None)
    assert walk(back_off, 2000, {0: 1})[-1] == 0.9
    assert back_off.incident() == pytest.approx(0.81)


def test_jump_back():
    back_off = BackOff(sgd(), hold_steps=2, rewarm_steps=0)
    assert walk(back_off, 4, {0: 1}) == [0.5, 0.5, 1.0, 1.0]


def test_composes_with_scheduler_and_warmup():
    opt = sgd()
    scheduler = ExponentialLR(opt, 0.9)
    warmup(opt, 2)
    back_off = BackOff(opt, hold_steps=1, rewarm_steps=2, shape=cosine_warmup)
    param = opt.param_groups[0]["params"][0]
    rate, expected = 1.0, 0.0
    for step in range(8):
        if step == 3:
            back_off.incident()
        assert opt.param_groups[0]["lr"] == rate
        used = effective_lr(opt)[0]
        assert used == pytest.approx(rate * min(1, (step + 1) / 2) * {3: 0.5, 4: 0.75}.get(step, 1))
        param.grad = torch.ones(1)
        opt.step()
        scheduler.step()
        rate *= 0.9
        expected -= used
        assert param.item() == pytest.approx(expected, rel=1e-6)


@given(
    depth=st.floats(0.001, 1),
    hold=st.integers(0, 50) | st.none(),
    rewarm=st.integers(0, 50),
    step=st.integers(0, 200),
)
def test_pure_function(depth, hold, rewarm, step):
    b = back_off_factor(step, depth, hold, rewarm)
    assert depth <= b <= 1
    if hold is None or step < hold:
        assert b == depth
    elif step >= hold + rewarm:
        assert b == 1.0
    else:
        assert b == pytest.approx(min(1, depth + (1 - depth) * (step - hold + 1) / rewarm if rewarm else 1))


@settings(max_examples=40, deadline=None)
@given(incidents=st.dictionaries(st.integers(0, 29), st.integers(1, 3), max_size=5), stop=st.integers(0, 29))
def test_resume_at_any_step_is_exact(incidents, stop):
    def build():
        return BackOff(sgd(), factor=0.6, hold_steps=2, rewarm_steps=5, min_factor=0.1)

    whole = walk(build(), 30, incidents)
    assert all(0.1 <= b <= 1 for b in whole)
    first = build()
    walk(first, stop, incidents)
    second = build()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    rest = {step - stop: n for step, n in incidents.items() if step >= stop}
    assert walk(second, 30 - stop, rest) == whole[stop:]
    assert second.state_dict()["num_incidents"] == sum(incidents.values())


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"factor": 1.0}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"min_factor": 0.0}, "min_factor"),
        ({"min_factor": 0.6}, "min_factor"),
        ({"hold_steps": -1}, "hold_steps"),
        ({"rewarm_steps": 1.5}, "rewarm_steps"),
        ({"max_incidents": 0}, "max_incidents"),
    ],
)
def test_bad_settings_are_named_and_nothing_joins(settings_, named):
    opt = sgd()
    with pytest.raises((ValueError, TypeError), match=named):
        BackOff(opt, **settings_)
    assert not opt._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    "change", [{"depth": 0.0}, {"depth": math.nan}, {"in_a_row": -1}, {"incident_at": 99}, {"other": 1}]
)
def test_bad_state_changes_nothing(change):
    back_off = BackOff(sgd())
    walk(back_off, 5, {2: 1})
    before = back_off.state_dict()
    with pytest.raises(ValueError, match="depth|in_a_row|incident_at|other"):
        back_off.load_state_dict({**before, **change})
    assert back_off.state_dict() == before


def test_bad_depth():
    with pytest.raises(ValueError, match="depth"):
        back_off_factor(0, 0.0)
