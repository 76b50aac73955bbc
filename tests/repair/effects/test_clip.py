"""What reaches the optimizer is what the user's own clipping would have left."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.clip import ZClip
from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, under


def train(clip=None, *, steps=40, scaled=False, fused=False):
    """``clip(params)`` is what an edited script calls before its step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for i in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 2) * (50 if i == steps - 5 else 1))
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            clip(list(model.parameters()))
        scaler.step(optimizer)
        scaler.update()
    return leavings(model, optimizer)


def norm(params):
    nn.utils.clip_grad_norm_(params, 0.5)


def value(params):
    nn.utils.clip_grad_value_(params, 0.1)


def z_score():
    rule = ZClip(warmup_steps=10)
    return lambda params: rule([p.grad for p in params])


Z_SCORE = {"adaptive_clip": {"name": "ZClip", "warmup_steps": 10}}


@pytest.mark.parametrize(
    "how", [{}, {"scaled": True}, {"fused": True}, {"scaled": True, "fused": True}], ids=str
)
@pytest.mark.parametrize(
    ("plan", "edit"),
    [({"clip_norm": 0.5}, norm), ({"clip_value": 0.1}, value), (Z_SCORE, None)],
    ids=["norm", "value", "z-score"],
)
def test_equals_the_script_that_clips(plan, edit, how):
    edited = train(edit or z_score(), **how)
    with under(plan) as run:
        assert differences(train(**how), edited) == []
    assert run.clips == 0, "our own clipping is not the user's"
    assert differences(train(**how), edited) != [], "nothing was clipped"


@pytest.mark.parametrize(
    "plan", [{"clip_norm": 1e6}, {"clip_value": 1e6}, {"adaptive_clip": {"name": "ZClip", "z_thres": 1e6}}]
)
def test_nothing_is_changed_where_nothing_sticks_out(plan):
    with under(plan):
        clipped = train()
    assert differences(clipped, train()) == []


def test_each_optimizer_has_its_own_norm_and_memory():
    change = Change({"clip_norm": 1.0, "adaptive_clip": {"name": "AutoClip", "percentile": 50}})
    sizes = {}
    for name in ("a", "b"):
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1.0)
        for size in (4.0, 8.0) if name == "a" else (0.5, 0.1):
            w.grad = torch.tensor([size])
            change.before_step(optimizer)
            change.after_step(optimizer, True)
            sizes.setdefault(name, []).append(round(w.grad.item(), 4))
    assert sizes == {"a": [1.0, 1.0], "b": [0.5, 0.1]}


@pytest.mark.parametrize(
    "plan",
    [
        {"clip_norm": 0},
        {"clip_norm": float("nan")},
        {"clip_norm": "1"},
        {"clip_value": -1.0},
        {"adaptive_clip": 2.0},
        {"adaptive_clip": {"name": "Other"}},
        {"adaptive_clip": {"name": "ZClip", "alpha": 3.0}},
        {"adaptive_clip": {"name": "ZClip", "nonsense": 3.0}},
    ],
    ids=str,
)
def test_a_value_that_means_nothing_is_refused(plan):
    with pytest.raises(NotApplicable):
        Change(plan)
