"""Loops that clear their gradients before the step equal those that do it behind; loops that are right are left."""

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad
from torch.optim import Optimizer

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, under

PLAN = {"clear_after_step": 1}


def together(models, optimizers):
    return [leavings(m, o) for m, o in zip(models, optimizers, strict=True)]


def plain(early, *, to_none=True, by="optimizer", passes=1, clips=False, twice=False, kind=torch.optim.Adam):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = kind(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def clear():
        (model if by == "model" else optimizer).zero_grad(set_to_none=to_none)
        if twice:
            model.zero_grad(set_to_none=to_none)

    for _ in range(6):
        for _i in range(passes):
            model(torch.randn(8, 4)).square().mean().backward()
            if early:
                clear()
            if clips:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        if not early:
            clear()
        schedule.step()
    return together([model], [optimizer])


def two_on_one_loss(early, *, one_by_one=False):
    torch.manual_seed(0)
    models = nn.Linear(4, 3), nn.Linear(3, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    for _ in range(6):
        models[1](models[0](torch.randn(8, 4))).square().mean().backward()
        if early and not one_by_one:
            for optimizer in optimizers:
                optimizer.zero_grad()
        for optimizer in optimizers:
            if early and one_by_one:
                optimizer.zero_grad()
            optimizer.step()
        if not early:
            for optimizer in optimizers:
                optimizer.zero_grad()
    return together(models, optimizers)


def adversaries(early, *, to_none=True):
    """The critic's line is the wrong one; the generator is trained as it should be."""
    torch.manual_seed(0)
    critic, generator = nn.Linear(4, 1), nn.Linear(2, 4)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (critic, generator)]
    for _ in range(6):
        fake = generator(torch.randn(8, 2))
        (critic(fake.detach()).mean() - critic(torch.randn(8, 4)).mean()).backward()
        if early:
            optimizers[0].zero_grad(set_to_none=to_none)
        optimizers[0].step()
        if not early:
            optimizers[0].zero_grad(set_to_none=to_none)
        optimizers[1].zero_grad(set_to_none=to_none)
        (-critic(fake).mean()).backward()
        optimizers[1].step()
    return together([critic, generator], optimizers)


def cleared_first(early):
    """A pass in two has no step, and the next clears what it has given, as it should."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(8):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        if early:
            optimizer.zero_grad()
        if i % 2:
            optimizer.step()
            if not early:
                optimizer.zero_grad()
    optimizer.zero_grad()
    return together([model], [optimizer])


def scaled(early, *, unscales=None, overflows=False):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for i in range(6):
        x = torch.randn(8, 4)
        if overflows and i in (0, 3):
            x[0, 0] = float("inf")
        scaler.scale(model(x).square().mean()).backward()
        if unscales == "before":
            scaler.unscale_(optimizer)
        if early:
            optimizer.zero_grad(set_to_none=unscales == "before")
        if unscales == "behind":
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        if not early:
            optimizer.zero_grad(set_to_none=unscales == "before")
        scaler.update()
    return [*together([model], [optimizer]), scaler.state_dict()]


MISTAKEN = {
    "plain": (plain, {}),
    "set to zero": (plain, {"to_none": False}),
    "by the model": (plain, {"by": "model"}),
    "by both": (plain, {"twice": True}),
    "by both, set to zero": (plain, {"twice": True, "to_none": False}),
    "gathered": (plain, {"passes": 3}),
    "gathered, set to zero": (plain, {"passes": 3, "to_none": False}),
    "clipped": (plain, {"clips": True}),
    "clipped, set to zero": (plain, {"clips": True, "to_none": False}),
    "gathered and clipped": (plain, {"passes": 3, "clips": True}),
    "gathered and clipped, set to zero": (plain, {"passes": 3, "clips": True, "to_none": False}),
    "two": (two_on_one_loss, {}),
    "two, each before its step": (two_on_one_loss, {"one_by_one": True}),
    "cleared first": (cleared_first, {}),
    "adversaries": (adversaries, {}),
    "adversaries, set to zero": (adversaries, {"to_none": False}),
    "scaled": (scaled, {}),
    "scaled, unscaled before": (scaled, {"unscales": "before"}),
    "scaled, unscaled behind": (scaled, {"unscales": "behind"}),
    "scaled, overflows": (scaled, {"overflows": True}),
}


@pytest.mark.parametrize(("loop", "how"), MISTAKEN.values(), ids=MISTAKEN)
def test_a_loop_that_clears_before_the_step_equals_one_that_does_it_behind(loop, how):
    right, wrong = loop(False, **how), loop(True, **how)
    with under(PLAN):
        mended, left = loop(True, **how), loop(False, **how)
    assert differences(mended, right) == []
    assert differences(left, right) == []
    assert differences(wrong, right) != []


def healthy_gan(to_none):
    """Each clears what the other's pass has filled; the generator's line comes before the critic's step."""
    torch.manual_seed(0)
    critic, generator = nn.Linear(4, 1), nn.Linear(2, 4)
    of_critic, of_generator = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (critic, generator))
    for i in range(8):
        fake = generator(torch.randn(8, 2))
        of_critic.zero_grad(set_to_none=to_none)
        (critic(fake).mean() - critic(torch.randn(8, 4)).mean()).backward()
        of_generator.zero_grad(set_to_none=to_none)
        of_critic.step()
        if i % 2:
            (-critic(generator(torch.randn(8, 2))).mean()).backward()
        of_generator.step()
    return together([critic, generator], [of_critic, of_generator])


def critic_every_other_time(to_none):
    """The critic steps first without a pass of its own; what the generator's pass has left is not for it."""
    torch.manual_seed(0)
    critic, generator = nn.Linear(4, 1), nn.Linear(2, 4)
    of_critic, of_generator = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (critic, generator))
    for i in range(8):
        of_generator.zero_grad(set_to_none=to_none)
        (-critic(generator(torch.randn(8, 2))).mean()).backward()
        of_generator.step()
        of_critic.zero_grad(set_to_none=to_none)
        if i % 2:
            critic(torch.randn(8, 4)).square().mean().backward()
        of_critic.step()
    return together([critic, generator], [of_critic, of_generator])


def without_a_bad_batch(to_none):
    """A pass is thrown away with its gradients, sometimes with an empty step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for i in range(12):
        optimizer.zero_grad(set_to_none=to_none)
        (model(torch.randn(8, 4)).square().mean() * (float("nan") if i in (2, 5) else 1)).backward()
        if i in (2, 5, 7):
            model.zero_grad(set_to_none=to_none)
        if i == 7:
            continue
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return together([model], [optimizer])


def by_hand(to_none):
    """Gradients are taken, cleared, and put back by the user, through ``.data`` if they are still there."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        model(torch.randn(8, 4)).square().mean().backward()
        halves = [p.grad.clone() / 2 for p in model.parameters()]
        optimizer.zero_grad(set_to_none=to_none)
        for p, half in zip(model.parameters(), halves, strict=True):
            if p.grad is None:
                p.grad = half
            else:
                p.grad.data.copy_(half)
        optimizer.step()
    return together([model], [optimizer])


def gathered(to_none):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(12):
        model(torch.randn(8, 4)).square().mean().backward()
        if i % 3 == 2:
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
    return together([model], [optimizer])


def closure(to_none):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    x = torch.randn(16, 4)

    def evaluate():
        optimizer.zero_grad(set_to_none=to_none)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(evaluate)
    return together([model], [optimizer])


def without_the_first_batch(to_none):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(6):
        model(torch.randn(8, 4)).square().mean().backward()
        if i == 0:
            optimizer.zero_grad(set_to_none=to_none)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if i > 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
    return together([model], [optimizer])


def two_passes(to_none):
    """Of each step the first pass is for looking only, as in SAM."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        x = torch.randn(8, 4)
        model(x).square().mean().backward()
        optimizer.zero_grad(set_to_none=to_none)
        (2 * model(x)).square().mean().backward()
        optimizer.step()
    return together([model], [optimizer])


HEALTHY = [
    healthy_gan,
    critic_every_other_time,
    without_a_bad_batch,
    by_hand,
    gathered,
    closure,
    without_the_first_batch,
    two_passes,
]


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("loop", HEALTHY)
def test_a_loop_that_is_right_is_left_as_it_is(loop, to_none):
    right = loop(to_none)
    with under(PLAN):
        left = loop(to_none)
    assert differences(left, right) == []


def test_steps_that_another_optimizer_takes_have_the_gradients():
    other = {"optimizer": {"name": "SGD", "lr": 0.1}}
    with under(other):
        right, wrong = plain(False), plain(True)
    with under({**other, **PLAN}):
        mended = plain(True)
    assert differences(mended[0]["model"], right[0]["model"]) == []
    assert differences(wrong[0]["model"], right[0]["model"]) != []


def test_behind_the_step_the_gradients_are_cleared():
    with under(PLAN):
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for to_none, left in ((True, None), (False, 0.0)):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.zero_grad(set_to_none=to_none)
            before = model.bias.detach().clone()
            optimizer.step()
            assert not torch.equal(model.bias, before)
            assert (None if model.bias.grad is None else model.bias.grad.item()) == left


def attributes():
    owners = (
        (Optimizer, "zero_grad"),
        (nn.Module, "zero_grad"),
        (GradScaler, "update"),
        (GradScaler, "unscale_"),
    )
    clips = ((o, f"clip_grad_{how}_") for o in (clip_grad, torch.nn.utils) for how in ("norm", "value"))
    return [getattr(owner, name) for owner, name in (*owners, *clips)]


def test_when_it_is_removed_nothing_of_it_is_left():
    before = attributes()
    change = Change(PLAN)
    change.install()
    assert attributes() != before
    change.remove()
    change.remove()
    assert attributes() == before


@pytest.mark.parametrize("value", [0, 2, "yes", None])
def test_a_value_that_means_nothing_is_refused(value):
    with pytest.raises(NotApplicable, match="clear_after_step is 1"):
        Change({"clear_after_step": value})
