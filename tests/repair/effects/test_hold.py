"""Targets that move too often move once every K steps; what is trained, and statistics, are left."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under

K = 4


class Inside(nn.Module):
    """The target is a part of the model, and moves before each step, in the forward pass."""

    def __init__(self, how):
        super().__init__()
        self.online, self.norm, self.how = nn.Linear(4, 1), nn.BatchNorm1d(4), how
        self.target = copy.deepcopy(self.online).requires_grad_(how == "untrained")
        self.register_buffer("weight", self.online.weight.detach().clone())

    def forward(self, x):
        x = self.norm(x)
        if self.how == "buffer":
            wanted = F.linear(x, self.weight)
            self.weight.lerp_(self.online.weight.detach(), 0.5)
        elif self.how == "replaced":
            wanted = F.linear(x, self.weight)
            self.weight = torch.lerp(self.weight, self.online.weight.detach(), 0.5)
        else:
            wanted = self.target(x)
            for to, of in zip(self.target.parameters(), self.online.parameters(), strict=True):
                to.data.lerp_(of.data, 0.5)
        return self.online(x), 0.9 * wanted.detach() + 1


def train_inside(how, every=1):
    """``every``: the edited script moves its target only in each so-manieth step."""
    torch.manual_seed(0)
    model = Inside(how)
    optimizer = torch.optim.SGD(model.online.parameters(), lr=0.1)
    held = []
    for i in range(10):
        before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("target", "weight"))}
        optimizer.zero_grad()
        F.mse_loss(*model(torch.randn(8, 4))).backward()
        if i % every:
            with torch.no_grad():
                for name, value in before.items():
                    model.get_parameter(name).copy_(value) if "." in name else model.weight.copy_(value)
        optimizer.step()
        held.append(model.weight.clone())
    return {**model.state_dict(), "held": torch.stack(held)}


@pytest.mark.parametrize("how", ["buffer", "replaced", "frozen", "untrained"])
def test_a_target_that_moves_in_the_forward_pass_equals_one_that_moves_less_often(how):
    with under({"hold_targets": K}):
        held = train_inside(how)
    assert differences(held, train_inside(how, every=K)) == []
    assert differences(held, train_inside(how)) != []


class Q(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


def train_outside(every=1, *, average=False, hard=False):
    """A target beside the model, moved by the loop; and an average that nothing is measured against."""
    torch.manual_seed(0)
    q = Q()
    target, kept = copy.deepcopy(q), copy.deepcopy(q)
    optimizer = torch.optim.SGD(q.parameters(), lr=0.1)
    for i in range(10):
        x = torch.randn(8, 4)
        with torch.no_grad():
            wanted = 0.9 * target(x) + 1
        optimizer.zero_grad()
        F.mse_loss(q(x), wanted).backward()
        optimizer.step()
        if (i + 1) % every == 0:
            if hard:
                target.load_state_dict(q.state_dict())
            else:
                with torch.no_grad():
                    for to, of in zip(target.parameters(), q.parameters(), strict=True):
                        to.lerp_(of, 0.3)
        with torch.no_grad():
            for to, of in zip(kept.parameters(), q.parameters(), strict=True):
                to.lerp_(of, 0.3)
        if average and i > 0:
            kept(x)
    target(x)  # what the loop has moved last is seen, or taken back, at the next forward pass
    return {
        n: p.detach().clone()
        for m, a in ((q, "q."), (target, "t."), (kept, "k."))
        for n, p in m.named_parameters(a)
    }


@pytest.mark.parametrize("hard", [True, False])
def test_a_target_that_the_loop_moves_equals_one_that_it_moves_less_often(hard):
    with under({"hold_targets": K}):
        held = train_outside(average=True, hard=hard)
    assert differences(held, train_outside(every=K, hard=hard)) == []
    assert differences(held, train_outside(hard=hard)) != []


def test_a_target_is_held_while_another_optimizer_takes_the_steps():
    other = {"optimizer": {"name": "Adam", "lr": 0.01}}
    with under({**other, "hold_targets": K}):
        held = train_inside("buffer")
    with under(other):
        assert differences(held, train_inside("buffer", every=K)) == []


def test_held_for_one_step_is_not_held():
    with under({"hold_targets": 1}):
        same = train_outside(), train_inside("buffer")
    assert differences(same[0], train_outside()) == differences(same[1], train_inside("buffer")) == []


def test_a_first_pass_in_inference_mode_does_no_harm():
    with under({"hold_targets": 2}):
        model = Inside("buffer")
        optimizer = torch.optim.SGD(model.online.parameters(), lr=0.1)
        with torch.inference_mode():
            model.eval()(torch.ones(8, 4))
        for _ in range(3):
            F.mse_loss(*model.train()(torch.randn(8, 4))).backward()
            optimizer.step()


def test_what_is_no_target_moves():
    """Statistics of norms, the vectors of a spectral norm, counters; and what is trained."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 1)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return self.out(self.norm(self.a(x)))

    def train():
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    with under({"hold_targets": 100}):
        held = train()
    assert differences(held, train()) == []


@pytest.mark.parametrize("value", [0, 1.5, "3", None])
def test_a_value_that_means_nothing_is_refused(value):
    with pytest.raises(NotApplicable):
        Change({"hold_targets": value})
