"""``sg.forecast``: it leaves nothing behind, takes what trainings are made of, and is right on planted faults."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler

import steadygrad as sg
from steadygrad.forecasting.watch import FirstSteps
from steadygrad.testing import assert_steady
from tests.integrations.trainings import differences

F = nn.functional


def mlp(width=16, act=nn.ReLU, classes=4, depth=2):
    hidden = [m for _ in range(depth) for m in (nn.Linear(width, width), act())]
    return nn.Sequential(*hidden, nn.Linear(width, classes))


def batch(n=32, width=16, classes=4):
    return torch.randn(n, width), torch.randint(0, classes, (n,))


class Everything(nn.Module):
    """Buffers, batch statistics, dropout, a plain counter, a frozen weight, tied weights."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.2)
        self.frozen, self.last = nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 16)
        self.last.weight = self.first.weight
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(float(x.detach().mean()))
        random.random(), np.random.rand()
        return self.last(self.frozen(self.drop(self.norm(self.first(x)).relu())))


def everything_of(model, optimizer, scheduler):
    """All that a training holds, as values, and the identities that a loop may hold on to."""
    values = {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None},
        "plain": [model.calls, list(model.seen), [m.training for m in model.modules()]],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "attributes": sorted(vars(optimizer)),
        "scheduler": repr(scheduler.state_dict()),
        "rng": [torch.get_rng_state(), repr(random.getstate()), repr(np.random.get_state())],
    }
    held = [id(g) for g in optimizer.param_groups]
    held += [id(v) for s in optimizer.state.values() for v in s.values()]
    held += [id(p.grad) for p in model.parameters()]
    return values, held


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, 0.1, momentum=0.9), lambda p: Adam(p, 1e-2)], ids=["sgd", "adam"]
)
def test_nothing_is_left_behind(make, raises):
    torch.manual_seed(0)
    model = Everything()
    model.drop.eval()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    x, y = torch.randn(32, 16), torch.randn(32, 16)
    for _ in range(4):  # in the middle of a run: there is state
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    calls = iter(range(100))

    def loss_fn(model, batch):
        if raises and next(calls) == 3:
            raise KeyError("mine")
        return F.mse_loss(model(batch[0]), batch[1])

    before, held = everything_of(model, optimizer, scheduler)
    if raises:
        with pytest.raises(KeyError, match="mine"):
            sg.forecast(model, loss_fn, (x, y), optimizer)
    else:
        assert sg.forecast(model, loss_fn, (x, y), optimizer).steps_seen == 10
    after, held_after = everything_of(model, optimizer, scheduler)
    assert differences(before, after) == []
    assert held_after == held


def test_what_the_optimizer_or_the_loss_holds_besides_the_model_comes_back():
    torch.manual_seed(0)

    class Weighted(nn.Module):
        """A loss with a weight of its own that is learned, and a running mean."""

        def __init__(self):
            super().__init__()
            self.log_sigma = nn.Parameter(torch.zeros(()))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, out, y):
            loss = F.cross_entropy(out, y)
            self.mean += 0.1 * (loss.detach() - self.mean)
            return loss * (-self.log_sigma).exp() + self.log_sigma

    model, loss_fn, loose = mlp(), Weighted(), nn.Parameter(torch.ones(3))
    kept = nn.Linear(2, 2)
    kept.weight.grad = torch.ones(2, 2)
    model.add_module("kept", kept)
    optimizer = Adam([*model.parameters(), *loss_fn.parameters(), loose], lr=0.05)

    def of(model, batch):
        x, y = batch
        return loss_fn(model[:5](x), y) + loose.square().sum() + kept(torch.ones(1, 2)).sum()

    before = [p.detach().clone() for p in (*model.parameters(), loss_fn.log_sigma, loose)]
    sg.forecast(model, of, batch(), optimizer)
    after = (*model.parameters(), loss_fn.log_sigma, loose)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(kept.weight.grad, torch.ones(2, 2)) and loose.grad is None and not optimizer.state
    loss_fn.mean.zero_()  # a plain function holds it, of which nothing is known
    sg.forecast(model[:5], loss_fn, batch(), optimizer, steps=2)
    assert loss_fn.mean == 0 and loss_fn.log_sigma == 0


def test_a_gradient_that_no_optimizer_owns_is_not_added_to():
    model = mlp()
    model[0].weight.grad = torch.ones(16, 16)
    sg.forecast(model, F.cross_entropy, batch(), SGD(model[-1].parameters(), lr=0.1), steps=2)
    assert torch.equal(model[0].weight.grad, torch.ones(16, 16))


class Sign(torch.optim.Optimizer):
    """As people write them: a count of its own, no second use for the closure."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.count = 0

    @torch.no_grad()
    def step(self):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
                    self.state[p]["old"] = p.grad.clone()


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "adam": lambda p: Adam(p, lr=1e-3, betas=[0.9, 0.99]),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "sign": lambda p: Sign(p, 1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    torch.manual_seed(0)
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    found = sg.forecast(model, nn.CrossEntropyLoss(), batch(), optimizer, steps=4)
    assert (found.will_fail, found.steps_seen) == (False, 4)
    assert found.lr == optimizer.param_groups[0]["lr"] and found.lr_limit > 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert not optimizer.state and getattr(optimizer, "count", 0) == 0


def test_without_an_optimizer_nothing_is_said_about_the_learning_rate():
    found = sg.forecast(mlp(), F.cross_entropy, batch())
    assert found.steps_seen == 1 and not found.will_fail
    assert math.isnan(found.lr) and math.isnan(found.lr_limit) and found.sharpness > 0


def test_batches_and_losses_of_every_kind():
    torch.manual_seed(0)
    model, (x, y) = mlp(), batch()
    optimizer = SGD(model.parameters(), lr=0.1)
    cases = [
        (nn.CrossEntropyLoss(), (x, y)),
        (nn.CrossEntropyLoss(), [x, y]),
        (F.cross_entropy, (x, y)),
        (lambda m, b: F.cross_entropy(m(b["x"]), b["y"]), {"x": x, "y": y}),
        (
            lambda m, b: (
                F.cross_entropy(m(b[0]), b[1]) + 1e-4 * m[0].weight.square().sum() + m(b[0]).mean() ** 2
            ),
            (x, y),
        ),
    ]
    for loss_fn, given in cases:
        found = sg.forecast(model, loss_fn, given, optimizer, steps=2)
        assert not found.will_fail and found.loss == pytest.approx(math.log(4), rel=0.3)


def test_half_precision_and_frozen_parameters():
    torch.manual_seed(0)
    model = mlp().to(torch.bfloat16)
    model[0].requires_grad_(False)
    x, y = batch()
    found = sg.forecast(
        model,
        lambda m, b: F.cross_entropy(m(b[0]).float(), b[1]),
        (x.bfloat16(), y),
        Adam(model.parameters(), 1e-3),
    )
    assert not found.will_fail and found.sharpness > 0


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (lambda m, b: sg.forecast("net", F.cross_entropy, b), TypeError, "model must be"),
        (lambda m, b: sg.forecast(m, 3, b), TypeError, "loss_fn must be callable"),
        (lambda m, b: sg.forecast(m, F.cross_entropy, b, "Adam"), TypeError, "optimizer must be"),
        (lambda m, b: sg.forecast(m, F.cross_entropy, b, steps=0), ValueError, "steps"),
        (lambda m, b: sg.forecast(m, F.cross_entropy, b[0]), TypeError, "needs a batch"),
        (
            lambda m, b: sg.forecast(m, lambda m, b: m(b[0]), b),
            TypeError,
            "scalar tensor, got a tensor of shape",
        ),
        (lambda m, b: sg.forecast(m, lambda m, b: 1.0, b), TypeError, "scalar tensor, got float"),
        (lambda m, b: sg.forecast(m, lambda m, b: m(b[0]).detach().mean(), b), TypeError, "no history"),
        (
            lambda m, b: sg.forecast(m, F.cross_entropy, b, SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
            ValueError,
            "trains nothing",
        ),
    ],
)
def test_bad_arguments_are_named(wrong, error, words):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        wrong(model, batch())
    assert differences(before, model.state_dict()) == []


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.feed(x)


class Recurrent(nn.Module):
    def __init__(self, kind, steps_out=4, **options):
        super().__init__()
        self.rnn, self.out = kind(8, 16, batch_first=True, **options), nn.Linear(16, steps_out)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def transformer():
    return nn.Sequential(
        nn.Embedding(20, 16), Block(16), Block(16), nn.LayerNorm(16), nn.Flatten(), nn.Linear(96, 4)
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


HEALTHY = {
    "mlp": (mlp, lambda: torch.randn(32, 16), lambda p: SGD(p, 0.1, momentum=0.9)),
    "cnn": (convolutional, lambda: torch.randn(16, 1, 8, 8), lambda p: Adam(p, 1e-3)),
    "transformer": (transformer, lambda: torch.randint(0, 20, (16, 6)), lambda p: torch.optim.AdamW(p, 3e-4)),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(16, 12, 8), lambda p: Adam(p, 1e-3)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_are_steady(name):
    torch.manual_seed(0)
    make, inputs, optimizer = HEALTHY[name]
    model, x = make(), inputs()
    y = torch.randint(0, 4, (len(x),))
    found = sg.forecast(model, nn.CrossEntropyLoss(), (x, y), optimizer(model.parameters()))
    assert not found.will_fail and found.causes == () and str(found).startswith("Steady"), found
    assert_steady(model, nn.CrossEntropyLoss(), (x, y), optimizer(model.parameters()), steps=1)


def init_times_10():
    model = mlp(depth=6)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    return model, F.cross_entropy, batch(), SGD(model.parameters(), 0.05)


def raw_pixels():
    model = mlp(width=64)
    x, y = torch.rand(32, 64) * 255, torch.randn(32, 1).repeat(1, 4)
    return model, F.mse_loss, (x, y), SGD(model.parameters(), 0.01)


def rate_times_1000():
    model = mlp(act=nn.Tanh)
    return model, F.mse_loss, (batch()[0], torch.randn(32, 4)), SGD(model.parameters(), 100.0)


def relu_rnn():
    model = Recurrent(nn.RNN, nonlinearity="relu")
    with torch.no_grad():
        q = torch.linalg.qr(torch.randn(16, 16))[0]
        model.rnn.weight_hh_l0.copy_(2 * q)
    return (
        model,
        F.cross_entropy,
        (torch.randn(16, 80, 8), torch.randint(0, 4, (16,))),
        SGD(model.parameters(), 0.01),
    )


def softmax_twice():
    model = nn.Sequential(mlp(), nn.Softmax(dim=1))
    return model, F.cross_entropy, batch(), SGD(model.parameters(), 0.1)


def nan_in_the_batch():
    model, (x, y) = mlp(), batch()
    x[3, 2] = math.nan
    return model, F.cross_entropy, (x, y), SGD(model.parameters(), 0.1)


def log_of_a_negative():
    model = mlp()
    return model, lambda m, b: -m(b[0]).log().mean(), batch(), SGD(model.parameters(), 0.1)


FAULTS = {
    init_times_10: "init_gain_large",
    raw_pixels: "unscaled_inputs",
    rate_times_1000: "lr_too_large",
    relu_rnn: "recurrent_growth",
    nan_in_the_batch: "bad_batch",
    log_of_a_negative: "unsafe_op",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_planted_faults_will_fail_for_their_reason(fault):
    torch.manual_seed(0)
    model, loss_fn, given, optimizer = fault()
    found = sg.forecast(model, loss_fn, given, optimizer)
    assert found.will_fail, found
    assert FAULTS[fault] in [c.cause for c in found.causes[:2]], found
    assert all(p.isfinite().all() for p in model.parameters())


def test_assert_steady_says_why_and_what_to_do():
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=r"Will fail \(0\.\d\d\)") as raised:
        assert_steady(*raw_pixels(), steps=2)
    assert "standardise the inputs" in str(raised.value)


def test_a_softmax_before_cross_entropy_is_noticed():
    torch.manual_seed(0)
    found = sg.forecast(*softmax_twice(), steps=2)
    assert "M106" in {f.code for f in found.findings} and found.confidence > 0.1


def test_a_value_that_is_not_finite_is_found_in_the_user_s_line():
    torch.manual_seed(0)
    model, loss_fn, given, optimizer = log_of_a_negative()
    first = sg.forecast(model, loss_fn, given, optimizer).first_nonfinite
    assert first is not None and first.op == "log" and first.file.endswith("test_forecast.py")


def test_the_object_for_machines_has_the_keys_of_the_contract():
    found = sg.forecast(mlp(), F.cross_entropy, batch(), steps=1).to_json()
    assert {"will_fail", "confidence", "causes", "layers", "steps_seen"} <= found.keys()
    assert [set(row) for row in found["layers"]] == [{"name", "forward_gain", "backward_gain"}] * 3


def test_a_listener_to_everything_is_told_nothing_and_has_its_optimizer_back():
    """A script under ``steadygrad run`` or ``check`` may ask for a forecast itself."""
    torch.manual_seed(0)
    model, (x, y), forecasts = mlp(), batch(), []
    optimizer = SGD(model.parameters(), lr=0.1)
    outer = FirstSteps(2, forecasts.append, failed=forecasts.append)
    outer.joinpoints.install(all_optimizers=True)
    try:
        sg.forecast(model, F.cross_entropy, (x, y), optimizer, steps=3)
        assert outer.steps == 0
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    finally:
        outer.joinpoints.remove()
    assert forecasts[0].steps_seen == 2 and forecasts[0].loss == pytest.approx(math.log(4), rel=0.3)
    assert "step" not in vars(optimizer)


def test_an_optimizer_that_is_watched_just_now_is_refused(tmp_path):
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    with sg.watch(model, optimizer, runs=tmp_path), pytest.raises(ValueError, match="watched already"):
        sg.forecast(model, F.cross_entropy, batch(), optimizer)


@pytest.mark.parametrize(("depth", "kind"), [(5, nn.Tanh), (5, nn.ReLU), (20, nn.Tanh)])
def test_without_an_optimizer_a_sound_net_is_not_said_to_fail(depth, kind):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(64, 64), kind())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    gain = nn.init.calculate_gain(kind.__name__.lower()) if kind is nn.ReLU else 1.0
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
    found = sg.forecast(
        model, nn.functional.cross_entropy, (torch.randn(128, 64), torch.randint(0, 10, (128,)))
    )
    assert not found.will_fail and not found.causes
