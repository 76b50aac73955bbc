"""Fresh weights: as the script would draw them, within the user's own first pass, and never over learned ones."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from steadygrad.repair.effects.effect import NotApplicable
from tests.repair.effects.stepping import trains, upon

pytestmark = pytest.mark.usefixtures("apart")


def plan(scheme, modules, **more):
    return {"reinitialise": {"scheme": scheme, "modules": modules, **more}}


def net():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def train(model, steps=3, x=None, lr=0.05):
    """Losses of a training on data of its own stream."""
    data = torch.Generator().manual_seed(7)
    x = torch.randn(64, 8, generator=data) * 40 if x is None else x
    y = torch.randint(3, (64,), generator=data)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_he_is_the_script_that_draws_its_weights_so_bit_for_bit():
    torch.manual_seed(0)
    patched = net()
    generator = torch.Generator().manual_seed(5)
    for layer in patched:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    wanted = train(patched)
    torch.manual_seed(0)
    with upon(plan("he", dict.fromkeys(["0", "2", "4"], math.sqrt(2)), seed=5)):
        assert train(net()) == wanted


def test_the_stream_of_random_numbers_of_the_run_is_untouched():
    after = []
    for change in ({}, plan("orthogonal", {"0": 1.0}), plan("lsuv", {"0": 1.0, "2": 1.0})):
        torch.manual_seed(1)
        with upon(change):
            train(net())
        after.append(torch.randn(4))
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], after[2])


def test_the_same_numbers_whatever_the_script_has_drawn():
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with upon(plan("xavier", {"0": 1.0, "2": 1.0, "4": 1.0})):
            drawn.append(train(net()))
    assert drawn[0] == drawn[1]


def test_a_convolution_and_its_transpose_have_the_deviation_of_their_fan_in():
    model = nn.Sequential(nn.Conv2d(16, 32, 3, groups=2), nn.ConvTranspose2d(32, 64, 3))
    with upon(plan("he", {"0": 1.0, "1": 1.0})):
        trains(model)
        model(torch.randn(2, 16, 8, 8))
    assert model[0].weight.std().item() * math.sqrt(8 * 9) == pytest.approx(1, rel=0.05)
    assert model[1].weight.std().item() * math.sqrt(32 * 9) == pytest.approx(1, rel=0.05)


def test_orthogonal_rows():
    model = net()
    with upon(plan("orthogonal", {"2": 2.0})):
        train(model, steps=1, lr=0.0)
    weight = model[2].weight
    assert torch.allclose(weight @ weight.T, 4 * torch.eye(32), atol=1e-5)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.passes = net(), 0

    def forward(self, x):
        self.passes += 1
        return self.net(x)


def test_lsuv_takes_one_pass_which_is_that_of_the_user():
    model = Counting()
    x = torch.randn(64, 8) * 300 + 100
    seen = []
    with upon(plan("lsuv", dict.fromkeys(["net.0", "net.2", "net.4"], 1.0))):
        losses = train(model, steps=1, x=x, lr=0.0)
        assert model.passes == 1
        assert not model.net[0]._forward_hooks
        assert train(model, steps=1, x=x, lr=0.0) == losses  # the first pass has seen the new weights
    for layer in (model.net[0], model.net[2], model.net[4]):
        layer.register_forward_hook(lambda m, a, out: seen.append(out))
    model(x)
    for out in seen:
        assert out.std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert out.mean(0).abs().max() < 1e-3


def test_the_first_gradient_is_that_of_the_new_weights():
    x = torch.randn(64, 8) * 50
    model = net()
    with upon(plan("lsuv", dict.fromkeys(["0", "2", "4"], 1.0))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
    got = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    model(x).square().mean().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(got, model.parameters(), strict=True))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.decode.weight = self.encode.weight
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.decode(torch.tanh(self.encode(x))))


def test_a_tied_weight_is_written_once_and_not_divided():
    model = Tied()
    with upon(plan("lsuv", {"encode": 1.0, "decode": 1.0, "out": 1.0})):
        train(model, steps=2, lr=0.0)
    assert model.encode.weight is model.decode.weight
    weight = model.encode.weight
    assert torch.allclose(weight @ weight.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize("scheme", ["he", "lsuv"])
def test_a_parametrised_weight_is_assigned(scheme):
    model = net()
    parametrizations.weight_norm(model[2])
    before = model[2].weight.detach().clone()
    with upon(plan(scheme, {"0": 1.0, "2": 1.0})):
        train(model, steps=1, lr=0.0)
    assert (model[2].weight - before).abs().max() > 0.05


def test_a_target_network_stays_a_copy():
    model = net()
    target = copy.deepcopy(model).requires_grad_(False)
    other = net().requires_grad_(False)
    kept = copy.deepcopy(other.state_dict())
    for scheme in ("he", "lsuv"):
        with upon(plan(scheme, {"0": 1.0, "2": 1.0})):
            train(model, steps=1, lr=0.0)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), target.parameters(), strict=True))
    assert all(torch.equal(kept[name], value) for name, value in other.state_dict().items())


def test_loaded_and_trained_weights_are_refused():
    saved = net().state_dict()
    with upon(plan("he", {"0": 1.0})), pytest.raises(NotApplicable, match="loaded"):
        model = net()
        model.load_state_dict(saved)
        train(model)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 8)).mean().backward()
    optimizer.step()
    with upon(plan("he", {"0": 1.0})), pytest.raises(NotApplicable, match="trained"):
        model(torch.randn(4, 8))
    assert nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_loading_a_target_network_refuses_nothing():
    with upon(plan("he", {"0": 1.0})):
        model = net()
        target = net().requires_grad_(False)
        target.load_state_dict(model.state_dict())
        train(model)


@pytest.mark.parametrize(
    "value",
    [{"scheme": "magic", "modules": {"0": 1.0}}, {"scheme": "he", "modules": {"0": math.inf}}],
)
def test_what_is_no_scheme_or_gain_is_refused(value):
    with pytest.raises(NotApplicable), upon({"reinitialise": value}):
        pass


def test_lazy_layers_and_paths_that_lead_nowhere_are_refused():
    with upon(plan("he", {"0": 1.0})), pytest.raises(NotApplicable, match="already"):
        model = nn.Sequential(nn.LazyLinear(3))
        trains(model)
        model(torch.randn(4, 8))
    with upon(plan("he", {"elsewhere": 1.0})), pytest.raises(NotApplicable, match="elsewhere"):
        train(net())


def test_lsuv_waits_for_a_batch_that_has_a_spread():
    model = net()
    with upon(plan("lsuv", {"0": 1.0})):
        trains(model)
        first = model(torch.zeros(64, 8))
        drawn = model[0].weight.detach().clone()
        model(torch.randn(64, 8) * 9)
        assert torch.equal(model[0].weight, drawn)  # the first graph still needs it
        first.mean().backward()
    with upon(plan("lsuv", {"0": 1.0})):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(torch.zeros(64, 8))
        for _ in range(2):
            loss = model(torch.zeros(64, 8) if _ == 0 else torch.randn(64, 8) * 9).mean()
            loss.backward()
            optimizer.step()
        assert not model[0]._forward_hooks


def test_lsuv_keeps_the_factor_of_a_small_output():
    model = net()
    change = {**plan("lsuv", {"0": 1.0, "4": 1.0}), "output_scale": {"modules": ["4"], "factor": 0.05}}
    out = []
    with upon(change):
        trains(model)
        out.append(model(torch.randn(64, 8)))
    assert out[0].std(correction=0).item() == pytest.approx(0.05, rel=1e-3)
