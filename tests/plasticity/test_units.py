"""Units that start anew, biases that find their level, weights from the data alone."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.plasticity import (
    ContinualBackprop,
    DormantReset,
    IntrinsicPlasticity,
    dormant_scores,
    hebbian_pretrain_,
    shrink_and_perturb_,
    soft_winner_update,
)
from steadygrad.plasticity._chain import links

X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def bits(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def step_of(model, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(X), torch.arange(64) % 3).backward()
    optimizer.step()


def test_dead_units_start_anew_and_the_function_stays():
    model = net()
    with torch.no_grad():
        model[0].bias[2], model[3].bias[:3] = -99.0, -99.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    step_of(model, optimizer)
    before, want = bits(model), model(X)
    redo = DormantReset(model, optimizer, X, threshold=0.0, every=1)
    rng = torch.get_rng_state()
    model(X)
    assert redo.step() == {"0": 1, "3": 3}
    assert torch.equal(rng, torch.get_rng_state())
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model[0].weight[2], before["0.weight"][2]) and model[0].bias[2] == 0
    assert torch.equal(model[0].weight[[0, 1, 3]], before["0.weight"][[0, 1, 3]])
    flattened = model[3].weight.unflatten(1, (4, 16))  # the channel's 16 places
    assert (flattened[3:, 2] == 0).all() and (flattened[3:, 0] != 0).all()
    assert (optimizer.state[model[3].weight]["exp_avg_sq"].unflatten(1, (4, 16))[:, 2] == 0).all()
    assert redo.step() == {} or redo.num_steps == 2


def test_scores():
    assert dormant_scores(torch.zeros(3)).tolist() == [0, 0, 0]
    assert dormant_scores(torch.tensor([1.0, math.nan])).isnan().all()


def test_nothing_is_reset_between_times_or_on_non_finite_activations():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    redo = DormantReset(model, optimizer, X, threshold=0.9, every=2)
    before = bits(model)
    model(X)
    assert redo.step() == {} and same(model, before)
    model(X * math.nan)
    assert redo.step() == {} and same(model, before)


def test_continual_backprop_replaces_the_least_useful_and_counts_ages():
    model = net()
    with torch.no_grad():
        model[5].weight[:, 5] = 1e-6  # of no use
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    renewal = ContinualBackprop(model, optimizer, X, replacement_rate=0.125, maturity=1)
    incoming = model[3].weight[5].clone()
    model(X)
    assert renewal.step() == {}  # none is old enough
    want = model(X)
    assert renewal.step() == {"3": 1}
    assert not torch.equal(model[3].weight[5], incoming) and (model[5].weight[:, 5] == 0).all()
    torch.testing.assert_close(model(X), want, atol=1e-4, rtol=0)
    assert renewal.state_dict()["age"]["3"].tolist() == [2, 2, 2, 2, 2, 0, 2, 2]


def test_continual_backprop_hands_the_mean_to_the_next_layer():
    """A unit that always gives the same may go without a trace."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [5.0, 5.0]]))
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[0.5, 5.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(32, 2)
    renewal = ContinualBackprop(model, optimizer, x, replacement_rate=0.5, maturity=0)
    want = model(x)
    assert renewal.step() == {"0": 1}
    torch.testing.assert_close(model(x), want)


def test_state_round_trips():
    for kind, options in (
        (ContinualBackprop, {"replacement_rate": 0.05, "maturity": 0}),
        (DormantReset, {"threshold": 0.5, "every": 2}),
    ):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control = kind(model, optimizer, X, **options)
        for _ in range(3):
            step_of(model, optimizer)
            control.step()
        twin = net()
        twin.load_state_dict(model.state_dict())
        other_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        other = kind(twin, other_optimizer, X, **options)
        other.load_state_dict(copy.deepcopy(control.state_dict()))
        for _ in range(5):
            step_of(model, optimizer), control.step()
            step_of(twin, other_optimizer), other.step()
        assert same(model, bits(twin))
        with pytest.raises(ValueError, match="not a state"):
            other.load_state_dict({})


def test_intrinsic_plasticity_brings_the_mean_to_its_target():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    x = torch.randn(256, 3) + 1
    plasticity = IntrinsicPlasticity(model, x, target=0.1, rate=0.1)
    weight = model[0].weight.clone()
    for _ in range(300):
        model(x)
        plasticity.step()
    mean = torch.tanh(model[0](x)).mean(0)
    torch.testing.assert_close(mean, torch.full((5,), 0.1), atol=5e-3, rtol=0)
    assert torch.equal(model[0].weight, weight)
    before = bits(model)
    model(x * math.nan)
    plasticity.step()
    assert same(model, before)
    other = IntrinsicPlasticity(model, x, target=0.1)
    other.load_state_dict(plasticity.state_dict())
    assert torch.equal(other.averages["0"], plasticity.averages["0"])


def test_shrink_and_perturb():
    model = nn.Sequential(nn.Linear(50, 40), nn.BatchNorm1d(40))
    before = bits(model)
    rng = torch.get_rng_state()
    shrink_and_perturb_(model, shrink=0.5, std=0.1, seed=3)
    assert torch.equal(rng, torch.get_rng_state())
    noise = model[0].weight - 0.5 * before["0.weight"]
    assert noise.std().item() == pytest.approx(0.1, rel=0.05) and abs(noise.mean().item()) < 0.01
    assert torch.equal(model[1].weight, before["1.weight"]) and torch.equal(model[0].bias, before["0.bias"])
    with pytest.raises(RuntimeError, match="evaluation mode"):
        shrink_and_perturb_(model.eval())
    with pytest.raises(ValueError, match="shrink"):
        shrink_and_perturb_(model, shrink=1.5)


@pytest.mark.parametrize("kind", [DormantReset, ContinualBackprop])
def test_evaluation_mode_is_refused(kind):
    model = net()
    control = kind(model, torch.optim.SGD(model.parameters(), lr=0.1), X)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model.eval(), control.step()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        hebbian_pretrain_(model, lambda: [X])


def test_a_net_without_such_layers_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="normalised"):
        IntrinsicPlasticity(model, torch.randn(1, 2), target=0.0)


def test_soft_winner_update_is_the_rule_unit_by_unit():
    torch.manual_seed(0)
    w, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    want = torch.zeros_like(w)
    for row in x:
        u = [float(w[k] @ row) for k in range(3)]
        total = sum(math.exp(v / 0.5) for v in u)
        for k in range(3):
            want[k] += 0.1 * math.exp(u[k] / 0.5) / total * (row - u[k] * w[k]) / 5
    torch.testing.assert_close(soft_winner_update(w, x, 0.1, 0.5), want)


def test_hebbian_learning_finds_prototypes():
    """Clusters on the sphere: each is answered by a unit that points at it."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 10, generator=generator))
    data = centres.repeat(60, 1) + 0.05 * torch.randn(180, 10, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3))
    head, norm = model[2].weight.clone(), model[0].weight.norm().item()
    hebbian_pretrain_(model, lambda: data.split(20), epochs=20, lr=0.5)
    assert (F.normalize(model[0].weight) @ centres.T).amax(0).min() > 0.98
    assert torch.equal(model[2].weight, head) and model[0].weight.norm().item() == pytest.approx(norm)


def test_hebbian_learning_of_convolutions_layer_by_layer():
    model = net()
    moved = hebbian_pretrain_(model, lambda: X.split(16))
    assert list(moved) == ["0", "3"] and all(v > 0 for v in moved.values())
    before = bits(model)
    hebbian_pretrain_(model, lambda: [X * math.nan])
    assert all(torch.allclose(t, before[n], atol=1e-6) for n, t in model.state_dict().items())
    with pytest.raises(ValueError, match="no batch"):
        hebbian_pretrain_(model, lambda: [])


class Tokens(nn.Module):
    """Five tokens of eight units each, read by what ``read`` makes of them."""

    def __init__(self, reader, read):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(4, 8), reader, read

    def forward(self, x):
        return self.b(self.read(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    ("reader", "read", "linked"),
    [
        (nn.Linear(8, 2), lambda h: h, True),
        (nn.Linear(8, 2), lambda h: h.flatten(0, 1), True),
        (nn.Linear(8, 2), lambda h: h.reshape(-1, 8), True),
        (nn.Linear(40, 2), lambda h: h.flatten(1), False),  # by tokens, then units
        (nn.Linear(16, 2), lambda h: h.view(-1, 16), False),
        (nn.Linear(8, 2), lambda h: F.max_pool1d(h, 3, 1, 1), False),  # of neighbouring units
        (nn.Conv1d(5, 2, 1), lambda h: h, False),  # the tokens are its channels
    ],
)
def test_units_are_followed_through_what_lays_them_out_anew(reader, read, linked):
    found, left_out = links(Tokens(reader, read), torch.randn(16, 5, 4))
    assert [(k.name, k.reader_name) for k in found] == ([("a", "b")] if linked else [])
    assert ("a.weight" in left_out) != linked


class Pictures(nn.Module):
    """Four channels of 4 x 4, read by what ``read`` makes of them."""

    def __init__(self, reader, read):
        super().__init__()
        self.a, self.b, self.read = nn.Conv2d(1, 4, 3), reader, read

    def forward(self, x):
        return self.b(self.read(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    ("reader", "read", "linked"),
    [
        (nn.Linear(64, 2), lambda h: h.flatten(1), True),
        (nn.Linear(64, 2), lambda h: h.view(len(h), -1), True),
        (nn.Linear(16, 2), lambda h: F.max_pool2d(h, 2).reshape(-1, 16), True),
        (nn.Conv2d(4, 2, 1), lambda h: F.avg_pool2d(h, 2), True),
        (nn.Linear(4, 2), lambda h: h, False),  # the columns, as many as there are channels
        (nn.Linear(16, 2), lambda h: h.flatten(2), False),
    ],
)
def test_channels_are_followed_too(reader, read, linked):
    found, _ = links(Pictures(reader, read), torch.randn(16, 1, 6, 6))
    assert [(k.name, k.reader_name) for k in found] == ([("a", "b")] if linked else [])
