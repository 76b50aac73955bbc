"""Every recipe: it trains what did not train, resumes bit for bit, and changes nothing when it cannot be made."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from steadygrad import recipes
from tests.recipes.nets import KINDS, Kind, LSTMNet, plain_mlp

STEPS = 120


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(x, dtype=torch.float32)[order] / 16
    return (x - x.mean(0)) / (x.std(0) + 0.01), torch.tensor(y)[order]


def batches(digits, steps):
    x, y = digits
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        index = torch.randint(1500, (32,), generator=generator)
        yield x[index], y[index]


def accuracy(model, digits):
    x, y = digits
    model.eval()
    with torch.no_grad():
        return (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request) -> Kind:
    return request.param


def made(kind: Kind, x, **settings):
    torch.manual_seed(0)
    return kind.recipe(kind.model(), x[:8], **{"total_steps": STEPS, **kind.settings, **settings})


def train(recipe, pairs):
    for x, y in pairs:
        F.cross_entropy(recipe.model(x), y).backward()
        recipe.step()


@pytest.mark.slow
def test_trains_what_adamw_alone_does_not(kind, digits):
    torch.manual_seed(0)
    plain = kind.model()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3)
    for x, y in batches(digits, STEPS):
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    recipe = made(kind, digits[0])
    train(recipe, batches(digits, STEPS))
    assert accuracy(plain, digits) < 0.6
    assert accuracy(recipe.model, digits) > 0.75


def test_resumes_bit_for_bit(kind, digits):
    whole, stopped = made(kind, digits[0]), made(kind, digits[0])
    pairs = list(batches(digits, 8))
    torch.manual_seed(3)
    train(whole, pairs)
    torch.manual_seed(3)
    train(stopped, pairs[:4])
    state, rng = copy.deepcopy(stopped.state_dict()), torch.get_rng_state()
    resumed = made(kind, digits[0])
    resumed.load_state_dict(state)
    torch.set_rng_state(rng)
    train(resumed, pairs[4:])
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.scheduler.get_last_lr() == resumed.scheduler.get_last_lr()


def test_a_step_with_a_nan_leaves_no_trace(kind, digits):
    recipe = made(kind, digits[0])
    train(recipe, batches(digits, 30))  # ZClip's memory is warm
    before = copy.deepcopy(recipe.state_dict())
    x, y = next(batches(digits, 1))
    recipe.model.eval()  # batch statistics belong to the forward pass, not to the step
    F.cross_entropy(recipe.model(x), y).backward()
    next(recipe.model.parameters()).grad.view(-1)[0] = float("nan")
    assert not recipe.step().finite
    assert_same(before, recipe.state_dict())
    assert all(p.grad is None for p in recipe.model.parameters())


def test_a_loss_scale_changes_nothing_and_its_overflow_leaves_no_trace(digits):
    """A scale that is a power of two and is taken off again gives the same bits."""
    plain, scaled = (made(KINDS[3], digits[0]) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pairs = list(batches(digits, 6))
    train(plain, pairs)
    for step, (x, y) in enumerate(pairs):
        scaler.scale(F.cross_entropy(scaled.model(x), y)).backward()
        assert scaled.step(scaler).finite
        if step == 2:
            before = copy.deepcopy(scaled.state_dict())
            scaler.scale(F.cross_entropy(scaled.model(x), y)).backward()
            next(scaled.model.parameters()).grad.view(-1)[0] = float("inf")
            assert not scaled.step(scaler).finite
            assert_same(before, scaled.state_dict())
            assert scaler.get_scale() == 2.0**9
    assert_same(plain.state_dict(), scaled.state_dict())


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


BAD = [
    ({"total_steps": 1}, ValueError, "total_steps must be at least 2"),
    ({"total_steps": 10.0}, ValueError, "total_steps"),
    ({"warmup_steps": STEPS}, ValueError, str(STEPS)),
    ({"warmup_steps": -1}, ValueError, "warmup_steps"),
    ({"max_norm": 0.0}, ValueError, "max_norm"),
    ({"lr": -1.0}, ValueError, "-1.0"),
    ({"scheme": "best"}, ValueError, "unknown scheme 'best'"),
]


@pytest.mark.parametrize(("settings", "error", "words"), BAD)
def test_bad_settings_change_nothing(kind, digits, settings, error, words):
    torch.manual_seed(0)
    model = kind.model()
    shape, weights = str(model), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        kind.recipe(model, digits[0][:8], **{"total_steps": STEPS, **settings})
    assert str(model) == shape
    assert_same(dict(weights), dict(model.state_dict()))


def test_an_example_that_does_not_fit_changes_nothing(kind):
    model = kind.model()
    shape, weights = str(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="example"):
        kind.recipe(model, torch.zeros(2, 7), total_steps=10)
    assert str(model) == shape
    assert_same(dict(weights), dict(model.state_dict()))


def test_no_module_is_told():
    with pytest.raises(TypeError, match="nn.Module, got function"):
        recipes.deep_mlp(lambda x: x, torch.zeros(1), total_steps=10)


def test_structure_can_be_left_alone(kind, digits):
    recipe = made(kind, digits[0], change_model=False)
    assert str(recipe.model) == str(kind.model()) and recipe.changes == ()


def test_an_unknown_structure_is_kept_and_said(digits):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x):
            return self.b(self.a(x).relu())

    with pytest.warns(UserWarning, match="no layer was made residual.*change_model=False silences this"):
        recipe = recipes.deep_mlp(Own(), digits[0][:8], total_steps=10)
    assert recipe.changes == ("left as it is: nothing that this recipe knows how to change",)


def test_frozen_weights_keep_every_bit_and_their_function(digits):
    x = digits[0][:8]
    trunk = plain_mlp(6)[:-1].requires_grad_(False)
    before = trunk(x)
    recipe = recipes.deep_mlp(
        nn.Sequential(trunk, *plain_mlp(3)[1:]), x, total_steps=10, weight_decay=0.5, lr=0.1
    )
    assert recipe.model[0] is trunk and torch.equal(trunk(x), before)
    train(recipe, batches(digits, 3))
    assert torch.equal(trunk(x), before)


def test_nothing_to_train_changes_nothing(kind, digits):
    model = kind.model().requires_grad_(False)
    shape, weights = str(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="requires_grad"):
        kind.recipe(model, digits[0][:8], total_steps=STEPS, change_model=False)
    assert str(model) == shape
    assert_same(dict(weights), dict(model.state_dict()))


def test_a_wrapped_model_is_refused(digits):
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(ValueError, match="wrap recipe.model"):
        recipes.deep_mlp(Wrapped(plain_mlp(2)), digits[0][:8], total_steps=10)


def test_norms_of_two_dimensions_do_not_decay():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.LayerNorm((2, 5)), nn.Flatten(), nn.Linear(10, 1))
    recipe = recipes.deep_mlp(model, torch.zeros(1, 2, 5), total_steps=10, change_model=False)
    decayed, other = recipe.optimizer.param_groups
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert len(other["params"]) == 4


def test_a_net_without_recurrence_is_told(digits):
    with pytest.warns(UserWarning, match="no nn.RNN, nn.LSTM or nn.GRU"):
        recipes.recurrent(plain_mlp(2), digits[0][:8], total_steps=10)
    recipes.recurrent(LSTMNet(num_layers=1), digits[0][:8], total_steps=10)  # one layer is as it should be


def test_schedule_rises_falls_and_counts_taken_steps_only(digits):
    recipe = recipes.deep_mlp(plain_mlp(2), digits[0][:8], total_steps=10, warmup_steps=2, lr=1.0)
    rates = []
    for x, y in batches(digits, 10):
        rates.append(recipe.scheduler.get_last_lr()[0])
        F.cross_entropy(recipe.model(x), y).backward()
        recipe.step()
    assert rates[:3] == [0.5, 1.0, pytest.approx(0.96194, abs=1e-4)]
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


def test_biases_norms_and_scales_do_not_decay(digits):
    recipe = made(KINDS[0], digits[0], weight_decay=0.3)
    for group in recipe.optimizer.param_groups:
        decays = group["weight_decay"] == 0.3
        assert group["params"] and all((p.ndim >= 2) == decays for p in group["params"])
    counted = sum(len(g["params"]) for g in recipe.optimizer.param_groups)
    assert counted == len(list(recipe.model.parameters()))


def test_qk_norm_is_added_and_trained(digits):
    recipe = made(KINDS[3], digits[0], qk_norm=True)
    plain = made(KINDS[3], digits[0])
    more = len(list(recipe.model.parameters())) - len(list(plain.model.parameters()))
    assert more == 2 * 12  # a scale for the queries and one for the keys of each layer
    assert len(recipe.changes) == len(plain.changes) + 1 and recipe.changes[-1].startswith("qk_norm")
    held = {id(p) for g in recipe.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in recipe.model.parameters()}
    before = [p.detach().clone() for p in recipe.model.parameters()]
    train(recipe, batches(digits, 3))
    assert sum(not torch.equal(a, b) for a, b in zip(before, recipe.model.parameters(), strict=True)) == len(
        before
    )


def test_curriculum_comes_on_top(digits):
    x, y = digits
    data = torch.utils.data.TensorDataset(x[:1500], y[:1500])
    recipe = made(KINDS[0], x, total_steps=30)
    difficulty = x[:1500].norm(dim=1)
    loader = recipe.loader(data, 32, difficulty=difficulty, seed=1)
    seen = [batch[0].norm(dim=1).max().item() for batch in loader]
    easiest = difficulty.sort().values
    assert seen[0] <= easiest[149].item()  # the tenth that is open at the first step
    assert max(seen[10:]) > easiest[1400].item()
    first = next(iter(recipe.loader(data, 32, seed=1)))[0]
    assert first.norm(dim=1).max() > easiest[149]


def test_prints_what_it_did(digits):
    told = str(made(KINDS[3], digits[0]))
    for word in (
        "12 Transformer layers put their norms first",
        "AdamW",
        "ZClip",
        "max_norm=1.0",
        "120 steps",
    ):
        assert word in told


def test_a_recurrent_root_is_replaced():
    lstm = nn.LSTM(3, 8, 4)
    recipe = recipes.recurrent(lstm, torch.zeros(5, 1, 3), total_steps=10)
    assert recipe.model is not lstm and recipe.model(torch.zeros(5, 2, 3))[0].shape == (5, 2, 8)
    net = LSTMNet()
    assert recipes.recurrent(net, torch.zeros(2, 64), total_steps=10).model is net
