"""Cuts above what is not trained are told; those that are meant to be there starve nobody."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.survey.cuts import LOOKS, Cuts
from tests.repair.effects.stepping import leavings
from tests.repair.survey.watching import watched_by

pytestmark = pytest.mark.usefixtures("apart")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.teacher = copy.deepcopy(self.a)


@torch.no_grad()
def decorated(net, x):
    return torch.tanh(net.a(x))


def by_block(net, x):
    with torch.no_grad():
        h = net.a(x)
    return h


def twice(net, x):
    with torch.no_grad():
        h = net.a(x).detach()
    return h.data


def set_in_place(net, x):
    h = torch.zeros(len(x), 4)
    h[:] = net.a(x).detach()
    return h


def loss_of(first):
    def loss(net, x):
        out = net.c(torch.relu(net.b(first(net, x))))
        with torch.no_grad():
            F.mse_loss(net.c(net.b(net.a(x))), x[:, :1])  # an evaluation
        return F.mse_loss(out, x[:, :1])

    return loss


def follows(net):
    for p, q in zip(net.a.parameters(), net.teacher.parameters(), strict=True):
        q.data.mul_(0.9).add_(p.data, alpha=0.1)


def survey(loss_of_batch, steps=LOOKS + 2, surveyor=None, passes=1, after=lambda net: None, params=None):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(params(net) if params else net.parameters(), lr=0.01)
    surveyor = surveyor or Cuts()
    with watched_by(surveyor) as run:
        run.optimizer_built(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(passes):
                loss = loss_of_batch(net, torch.randn(8, 3))
                run.backward([loss], [loss.detach()])
                loss.backward()
            run.before_step(optimizer)
            optimizer.step()
            run.after_step(optimizer, True)
            after(net)
    assert torch.overrides._get_current_function_mode() is None
    return surveyor.found()


def guilty(found):
    assert json.loads(json.dumps(found)) == found
    sites = [s for s in found.get("sites", ()) if s["reaches"] and s["untrained"]]
    return [(s["op"], s["per_step"], s["parameters"], s["untrained"]) for s in sites]


@pytest.mark.parametrize(
    ("first", "ops"),
    [
        (lambda net, x: net.a(x).detach(), ["detach"]),
        (lambda net, x: net.a(x).data, ["data"]),
        (lambda net, x: F.linear(x, net.a.weight.detach(), net.a.bias.data), ["detach", "data"]),
        (by_block, ["no_grad"]),
        (decorated, ["no_grad"]),
        (twice, ["no_grad", "detach", "data"]),
        (set_in_place, ["detach"]),
    ],
)
def test_a_cut_above_what_nobody_trains(first, ops):
    found = guilty(survey(loss_of(first)))
    assert [op for op, *_ in found] == ops
    assert all(times == 1 and below == untrained for _, times, below, untrained in found)


def test_passes_that_are_gathered_count():
    assert guilty(survey(loss_of(by_block), passes=3)) == [("no_grad", 3.0, 2, 2)]


def test_parameters_of_no_optimizer_are_not_asked_for():
    params = lambda net: [*net.b.parameters(), *net.c.parameters()]  # noqa: E731
    assert guilty(survey(loss_of(by_block), params=params)) == []


# ------------------------------------------------------------------ cuts that are meant
def usual(net, x):
    return net.c(torch.relu(net.b(net.a(x))))


def byol(net, x):
    with torch.no_grad():
        target = net.teacher(x).detach()
    return (net.b(net.a(x)) - target).square().mean() + usual(net, x).square().mean()


def simsiam(net, x):
    one, two = net.a(x), net.a(x + 0.1)
    return -F.cosine_similarity(net.b(one), two.detach()).mean() + usual(net, x).square().mean()


def dqn(net, x):
    with torch.no_grad():
        target = x[:, :1] + 0.9 * usual(net, x)
    return F.mse_loss(usual(net, x), target)


def straight_through(net, x):
    h = net.b(net.a(x))
    h = h + (h.sign() - h).detach()
    return net.c(h).square().mean()


def reinforce(net, x):
    logits = usual(net, x)
    advantage = (x[:, :1] - logits).detach()
    return -(F.logsigmoid(logits) * advantage).mean()


def truncated(net, x):
    h, loss = net.a(x), 0
    for _ in range(3):
        h = torch.tanh(net.b(h.detach()) + net.a(x))
        loss = loss + net.c(h).square().mean()
    return loss


def metric(net, x):
    loss = usual(net, x).square().mean()
    loss.detach().mean(), loss.data.mean()
    return loss


@pytest.mark.parametrize("meant", [byol, simsiam, dqn, straight_through, reinforce, truncated, metric])
def test_a_gradient_that_is_stopped_on_purpose_starves_nobody(meant):
    found = survey(meant, after=follows)
    assert found["sites"], "the cuts themselves are seen"
    assert guilty(found) == []


def test_a_target_that_nobody_moves_is_told():
    """What keeps the target of ``byol`` out is that it follows."""
    assert guilty(survey(byol)) != []


def test_two_optimizers_each_have_their_steps():
    torch.manual_seed(0)
    generator, critic, surveyor = nn.Linear(2, 3), nn.Linear(3, 1), Cuts()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (critic, generator)]
    with watched_by(surveyor) as run:
        for optimizer in optimizers:
            run.optimizer_built(optimizer)
        for step in range(24):
            optimizer = optimizers[step % 3 == 2]
            for each in optimizers:
                each.zero_grad()
            fake = generator(torch.randn(8, 2))
            loss = critic(fake if step % 3 == 2 else fake.detach()).mean()
            run.backward([loss], [loss.detach()])
            loss.backward()
            run.before_step(optimizer)
            optimizer.step()
            run.after_step(optimizer, True)
        assert torch.overrides._get_current_function_mode() is None, "it has gone by itself"
    found = surveyor.found()
    assert [s["parameters"] for s in found["sites"] if s["reaches"]] == [2] and guilty(found) == []


def test_a_surveyed_run_is_the_run_bit_for_bit():
    def run(surveyed):
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        with watched_by(*([Cuts()] if surveyed else [])) as change:
            change.optimizer_built(optimizer)
            for _ in range(LOOKS + 3):
                optimizer.zero_grad()
                loss = loss_of(twice)(net, F.dropout(torch.randn(8, 3)))
                change.backward([loss], [loss.detach()])
                loss.backward()
                change.before_step(optimizer)
                optimizer.step()
                change.after_step(optimizer, True)
        return leavings(net, optimizer)

    plain, surveyed = run(False), run(True)
    assert torch.equal(plain["rng"], surveyed["rng"])
    assert all(torch.equal(plain["model"][k], surveyed["model"][k]) for k in plain["model"])


def test_it_goes_by_itself_after_its_looks():
    torch.manual_seed(0)
    modes = []
    loss = loss_of(by_block)

    def noted(net, x):
        modes.append(torch.overrides._get_current_function_mode() is not None)
        return loss(net, x)

    survey(lambda net, x: noted(net, net.c.weight.new_tensor(x.tolist())), steps=LOOKS + 3)
    assert modes[1:LOOKS] == [True] * (LOOKS - 1) and modes[LOOKS:] == [False] * 3


def test_nothing_is_known_before_the_first_step():
    assert Cuts().found() == {}
