"""Copies that follow trained weights, found in trainings that keep one, and not in those that keep none."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steadygrad.probe.moving_target import MOST_LOOKS, MovingTarget

STEPS = 110


def net(norm: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 24), *([nn.BatchNorm1d(24)] if norm else []), nn.Tanh(), nn.Linear(24, 6)
    )


@pytest.fixture(autouse=True, scope="module")
def _few_objects():
    """What is there already, models of other tests among it, is not found in memory."""
    gc.collect()
    gc.freeze()


def follow(follow_up, *, model=None, target=None, steps=STEPS, watch=True):
    """Train ``model`` against ``target`` and do ``follow_up(step, model, target)`` after each step."""
    torch.manual_seed(0)
    model = net() if model is None else model
    target = copy.deepcopy(model).requires_grad_(False) if target is None else target
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    following, told = MovingTarget(), []
    for step in range(steps):
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        F.mse_loss(model(x), 0.9 * target(x).detach() + x).backward()
        if watch and following.due(step):
            told.append(following.look(step, [optimizer], [model]))
        optimizer.step()
        follow_up(step, model, target)
    return (
        following,
        [odd for odd in told if odd is not None],
        [p.detach().clone() for p in model.parameters()],
    )


def nothing(step, model, target):
    pass


def average(rate, every=1, *, data=False):
    def follow_up(step, model, target):
        if (step + 1) % every == 0:
            with torch.no_grad():
                for t, p in zip(target.parameters(), model.parameters(), strict=True):
                    if data:
                        t.data.copy_((1 - rate) * t.data + rate * p.data)
                    else:
                        t.mul_(1 - rate).add_(p, alpha=rate)

    return follow_up


def by_state_dict(every):
    def follow_up(step, model, target):
        if (step + 1) % every == 0:
            target.load_state_dict(model.state_dict())

    return follow_up


def through_data(every):
    def follow_up(step, model, target):
        if (step + 1) % every == 0:
            for t, p in zip(target.parameters(), model.parameters(), strict=True):
                t.data.copy_(p.data)

    return follow_up


FOLLOWERS = {  # name -> (what follows, kind, copy_every, rate)
    "average": (average(0.01), "ema", 1.0, 0.01),
    "slow average": (average(0.001), "ema", 1.0, 0.001),
    "fast average": (average(0.3), "ema", 1.0, 0.3),
    "average through data": (average(0.02, data=True), "ema", 1.0, 0.02),
    "average every 4": (average(0.1, 4), "ema", 4.0, 0.1),
    "copy every step": (by_state_dict(1), "hard", 1.0, 1.0),
    "copy every 2": (by_state_dict(2), "hard", 2.0, 1.0),
    "copy every 10": (by_state_dict(10), "hard", 10.0, 1.0),
    "copy every 50": (by_state_dict(50), "hard", 50.0, 1.0),
    "copy through data every 30": (through_data(30), "hard", None, 1.0),
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_what_follows_is_found(name):
    follow_up, kind, every, rate = FOLLOWERS[name]
    following, told, watched = follow(follow_up)
    facts = following.facts
    assert facts.target_network == kind
    assert facts.copy_every == every if every is not None else facts.copy_every != facts.copy_every
    assert facts.rate == pytest.approx(rate, rel=1e-3)
    assert set(facts.where) == {"0.weight", "2.weight"}
    (odd,) = told
    assert odd.kind == "moving_target" and odd.evidence["hard"] == (kind == "hard")
    assert odd.evidence.get("copy_every") == every
    _, _, alone = follow(follow_up, watch=False)
    assert all(torch.equal(a, b) for a, b in zip(watched, alone, strict=True))


class Inside(nn.Module):
    """The copy is a part of the model, and one of several layers of the same shape."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
        self.target = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x):
        return self.net(x)


def test_a_copy_inside_the_model_is_paired_by_name():
    def follow_up(step, model, target):
        with torch.no_grad():
            for t, p in zip(model.target.parameters(), model.net.parameters(), strict=True):
                t.lerp_(p, 0.05)

    following, _, _ = follow(follow_up, model=Inside(), target=nn.Identity())
    assert following.facts.target_network == "ema"
    assert following.facts.rate == pytest.approx(0.05, rel=1e-3)
    assert set(following.facts.where) == {"target.0.weight", "target.1.weight", "target.2.weight"}


def test_an_averaged_model_looks_the_same():
    model = net()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    following, _, _ = follow(
        lambda step, *_: averaged.update_parameters(model), model=model, target=nn.Identity()
    )
    assert following.facts.target_network == "ema" and following.facts.rate == pytest.approx(0.1, rel=1e-3)


def test_another_net_is_found_in_memory_only_if_it_follows():
    """An unrelated net of the same shapes that is trained by hand moves, but not towards ours."""
    other = net()

    def by_hand(step, model, target):
        loss = F.mse_loss(other(torch.randn(16, 6)), torch.randn(16, 6))
        with torch.no_grad():
            for p, g in zip(
                other.parameters(), torch.autograd.grad(loss, list(other.parameters())), strict=True
            ):
                p.sub_(0.05 * g)

    following, told, _ = follow(by_hand, target=nn.Identity())
    assert following.facts.target_network == "none" and told == []


def test_an_unrelated_net_does_not_use_up_the_looks():
    other, copying = net(), by_state_dict(80)

    def both(step, model, target):
        with torch.no_grad():
            for p in other.parameters():
                p.sub_(1e-3 * torch.sin(p))
        copying(step, model, target)

    following, _, _ = follow(both, steps=170)
    assert (following.facts.target_network, following.facts.copy_every) == ("hard", 80.0)
    assert set(following.facts.where) == {"0.weight", "2.weight"}


@pytest.mark.parametrize(
    ("model", "target"),
    [(None, None), (net(norm=True), nn.Identity()), (nn.Linear(6, 6), nn.Identity())],
    ids=["frozen reference", "running statistics", "nothing at all"],
)
def test_what_does_not_follow(model, target):
    gc.collect()
    following, told, _ = follow(nothing, model=model, target=target)
    assert following.facts.target_network == "none" and told == []


def test_looks_are_few():
    model = net()
    target = copy.deepcopy(model)
    optimizer, following = torch.optim.SGD(model.parameters(), lr=0.1), MovingTarget()
    looked = []
    for step in range(2 * 50 * MOST_LOOKS):
        if following.due(step):
            looked.append(step)
            following.look(step, [optimizer], [model])
    assert looked[:6] == [4, 5, 19, 50, 100, 150] and len(looked) == MOST_LOOKS
    assert target is not None


def test_no_copy_no_second_look():
    gc.collect()
    model = nn.Linear(17, 19)
    optimizer, following = torch.optim.SGD(model.parameters(), lr=0.1), MovingTarget()
    looked = [s for s in range(300) if following.due(s) and not following.look(s, [optimizer], [model])]
    assert looked == [4]


def test_samples_only():
    """Copies larger than the bound are left out; nothing of the others is kept alive."""
    model = nn.Sequential(nn.Linear(4000, 3000, bias=False), nn.Linear(100, 100, bias=False))
    target = copy.deepcopy(model).requires_grad_(False)
    optimizer, following = torch.optim.SGD(model.parameters(), lr=0.1), MovingTarget()
    following.look(4, [optimizer], [model, target])
    assert [pair.name for pair in following._pairs] == ["1.weight"]
    kept = following._pairs[0].last
    assert kept.numel() == 4096 and kept.dtype == torch.float64
    gone = torch.utils.weak.TensorWeakRef(target[1].weight)
    del target
    gc.collect()
    assert gone() is None
    assert following.look(5, [optimizer], [model]) is None
