"""Optimizers that were built over other parameters train as those built last; all others are left as they are."""

import copy

import pytest
import torch
from torch import nn

from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.ownership import OwnParameters
from tests.integrations.trainings import NO_HARM, differences, unwatched
from tests.repair.effects.stepping import under

PLAN = {"own_parameters": 1}
HELD = []  # models that a script keeps


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def net(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


def copied(model):
    return copy.deepcopy(model)


def kept(model):
    HELD.append(model)
    return copy.deepcopy(model)


def anew(model):
    return net()


def wider(model):
    return net(12)


def other_layer(model):
    model[2] = nn.Linear(8, 1)
    return model


def wider_layer(model):
    model[2] = nn.Linear(8, 3)
    return model


def longer(model):
    return model.extend([nn.Tanh(), nn.Linear(1, 1)])


CHANGES = (copied, kept, anew, wider, other_layer, wider_layer, longer)


def loop(model, optimizer, *, passes=1, none=True, scaled=False, of_model=False, steps=5):
    x = torch.randn(16, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
    for _ in range(steps):
        model.zero_grad() if of_model else optimizer.zero_grad(set_to_none=none)
        for _ in range(passes):
            scaler.scale((model(x) - x.sum(1, keepdim=True)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()


def closure(model, optimizer):
    x = torch.randn(16, 4)

    def evaluate():
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(evaluate)


def train(late, change=copied, make=sgd, run=loop, **how):
    """The optimizer is built after the model has become another one (``late``), or before."""
    torch.manual_seed(0)
    HELD.clear()
    model = net()
    optimizer = None if late else make(model.parameters())
    model = change(model)
    optimizer = optimizer or make(model.parameters())
    run(model, optimizer, **how)
    return {k: v.clone() for k, v in model.state_dict().items()}


def lbfgs(params):
    return torch.optim.LBFGS(params, lr=0.5, max_iter=3)


WAYS: dict[str, dict] = {
    "plain": {},
    "three_passes": {"passes": 3},
    "set_to_zero": {"none": False},
    "adamw": {"make": torch.optim.AdamW},
    "adagrad": {"make": torch.optim.Adagrad},
    "lbfgs": {"make": lbfgs, "run": closure},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_optimizer_built_too_early_equals_one_built_last(change, way):
    right, wrong = train(True, change, **way), train(False, change, **way)
    with under(PLAN):
        mended, left = train(False, change, **way), train(True, change, **way)
    assert differences(mended, right) == []
    assert differences(left, right) == []
    assert differences(wrong, right) != []


@pytest.mark.parametrize("change", [other_layer, longer])
@pytest.mark.parametrize("of_model", [False, True])
def test_gradients_that_are_scaled_are_unscaled_for_it_too(change, of_model):
    right = train(True, change, scaled=True, of_model=of_model)
    with under(PLAN):
        assert differences(train(False, change, scaled=True, of_model=of_model), right) == []


def gan(late, detached=True):
    """Generator and critic are drawn anew; the generator's pass fills the critic's gradients."""
    torch.manual_seed(0)
    models = [nn.Linear(4, 1), nn.Linear(2, 4)]
    optimizers = [] if late else [sgd(m.parameters()) for m in models]
    models = critic, generator = [nn.Linear(4, 1), nn.Linear(2, 4)]
    optimizers = optimizers or [sgd(m.parameters()) for m in models]
    for _ in range(5):
        for optimizer, sign in zip(optimizers, (1, -1), strict=True):
            optimizer.zero_grad()
            fake = generator(torch.randn(8, 2))
            fake = fake.detach() if detached and sign == 1 else fake
            (sign * (critic(fake).mean() - critic(torch.randn(8, 4)).square().mean())).backward()
            optimizer.step()
    return {**critic.state_dict(), **{f"g.{k}": v for k, v in generator.state_dict().items()}}


@pytest.mark.parametrize("detached", [True, False])
def test_each_of_two_optimizers_gets_its_own(detached):
    right = gan(True, detached)
    with under(PLAN):
        assert differences(gan(False, detached), right) == []
        assert differences(gan(True, detached), right) == []


def test_of_two_optimizers_that_fit_neither_is_taken():
    with under(PLAN):
        optimizers = [sgd(net().parameters()) for _ in range(2)]
        own = [list(o.param_groups[0]["params"]) for o in optimizers]
        model = net()
        for _ in range(3):
            model(torch.randn(8, 4)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        assert [list(map(id, o.param_groups[0]["params"])) for o in optimizers] == [
            list(map(id, p)) for p in own
        ]


# ---------------------------------------------------------------------- forgotten parts
class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.body(x))


def test_forgotten_layers_go_to_the_group_they_belong_to():
    with under(PLAN):
        model = Forgetful()
        groups = [
            {"params": [model.body.weight], "weight_decay": 0.1},
            {"params": [model.body.bias], "lr": 0.5},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        loop(model, optimizer)
        first, second = (g["params"] for g in optimizer.param_groups)
        assert first[1] is model.head.weight and second[1] is model.head.bias
        assert [len(first), len(second)] == [2, 2]


def test_a_forgotten_model_goes_to_the_group_with_the_usual_settings():
    with under(PLAN):
        body, slow, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(
            [{"params": slow.parameters(), "lr": 1e-5}, {"params": body.parameters()}], lr=1e-2
        )
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1)  # a warm-up moves every rate
        before = head.weight.clone()
        for _ in range(3):
            optimizer.zero_grad()
            head(slow(body(torch.randn(8, 4)))).square().mean().backward()
            optimizer.step()
            schedule.step()
        assert [len(g["params"]) for g in optimizer.param_groups] == [2, 4]
        assert not torch.equal(head.weight, before)


def test_names_of_a_group_stay_in_step():
    with under(PLAN):
        model = Forgetful()
        optimizer = torch.optim.SGD(list(model.body.named_parameters()), lr=0.1)
        loop(model, optimizer, steps=1)
        assert optimizer.param_groups[0]["param_names"] == ["weight", "bias", "head.weight", "head.bias"]


# ---------------------------------------------------------------------- what is meant
def held_after(optimizer, losses):
    """What an optimizer holds when these losses have run backward, each before a step."""
    for loss in losses:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return [p for g in optimizer.param_groups for p in g["params"]]


def test_targets_and_frozen_and_evaluated_parts_are_left_alone():
    with under(PLAN):
        online, target, judge, frozen = net(), net(), nn.Linear(1, 1), nn.Linear(1, 1)
        judge.eval()
        frozen.requires_grad_(False)
        optimizer = sgd(online.parameters())
        own = list(online.parameters())
        x = torch.randn(8, 4)

        def loss():
            with torch.no_grad():
                wanted = target(x)
            return (frozen(judge(online(x))) - wanted).square().mean()

        assert list(map(id, held_after(optimizer, [loss] * 4))) == list(map(id, own))


def test_an_image_that_is_optimized_stays_the_only_one():
    with under(PLAN):
        model, image = net(), torch.zeros(1, 4, requires_grad=True)
        optimizer = torch.optim.Adam([image], lr=0.1)
        assert held_after(optimizer, [lambda: model(image).sum()] * 4) == [image]


def test_a_twin_that_trains_is_not_pushed_out():
    """The optimizer holds one of two like networks, and the other runs backward first."""
    torch.manual_seed(0)
    with under(PLAN):
        one, two = net(), net()
        optimizer = sgd(one.parameters())
        x = torch.randn(8, 4)
        before = one[0].weight.clone()
        for _ in range(3):
            two(x).square().mean().backward()
            one(x).square().mean().backward()
            optimizer.step()
        own = [p for g in optimizer.param_groups for p in g["params"]]
        assert {id(p) for p in one.parameters()} <= {id(p) for p in own}
        assert not torch.equal(one[0].weight, before)


def test_master_weights_stay_in_their_optimizer():
    """Gradients are taken of a model in half precision, and steps on weights in full."""

    def masters():
        torch.manual_seed(0)
        model = net().bfloat16()
        full = [nn.Parameter(p.detach().float()) for p in model.parameters()]
        optimizer = sgd(full)
        for _ in range(4):
            model.zero_grad()
            model(torch.randn(8, 4).bfloat16()).square().mean().backward()
            for own, p in zip(full, model.parameters(), strict=True):
                own.grad = p.grad.float()
            optimizer.step()
            with torch.no_grad():
                for own, p in zip(full, model.parameters(), strict=True):
                    p.copy_(own)
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], full, strict=True))
        return dict(model.state_dict())

    right = masters()
    with under(PLAN):
        assert differences(masters(), right) == []


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # of the hook that every plan has
@pytest.mark.parametrize("name", NO_HARM)
def test_sound_trainings_stay_as_they_are(name):
    alone = NO_HARM[name](0, 6, unwatched)
    with under(PLAN):
        assert differences(NO_HARM[name](0, 6, unwatched), alone) == []


# ---------------------------------------------------------------------- the end
@pytest.mark.parametrize("make", [sgd, torch.optim.Adagrad])
@pytest.mark.parametrize("change", [copied, longer])
def test_the_user_gets_his_own_back(change, make):
    first = net()
    own = list(first.parameters())
    with under(PLAN):
        optimizer = make(own)
        model = change(first)
        loop(model, optimizer)
        assert [id(p) for p in optimizer.param_groups[0]["params"]] != [id(p) for p in own]
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, own))
    assert all(any(p is q for q in own) for p in optimizer.state)
    loop(first, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())


def test_values_that_mean_nothing():
    with pytest.raises(NotApplicable, match=r"got 0\.5"):
        OwnParameters(0.5)
