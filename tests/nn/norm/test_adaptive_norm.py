"""Adaptive norms: the function at the switch, what the controller does, and what it must not."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from steadygrad.nn import AdaptiveNorm, adapt_norms

NORMS = {
    "batch": lambda: nn.BatchNorm1d(6),
    "batch_2d": lambda: nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.BatchNorm2d(6), nn.Flatten()),
    "layer": lambda: nn.LayerNorm(6),
    "layer_no_bias": lambda: nn.LayerNorm(6, bias=False),
    "rms": lambda: nn.RMSNorm(6),
    "plain": lambda: nn.LayerNorm(6, elementwise_affine=False),
}


def net(make, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), make(), nn.Tanh(), nn.Linear(6, 6), make(), nn.Tanh(), nn.Linear(6, 2)
    )
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    return model


def x(seed=1, n=8):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def bits(model):
    return {n: t.numpy().tobytes() for n, t in model.state_dict().items()}


def step(model, seed, optimizer=None):
    if optimizer is not None:
        optimizer.zero_grad()
    model(x(seed)).square().sum().backward()
    if optimizer is not None:
        optimizer.step()


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_the_function_is_unchanged_at_the_switch(make):
    model = net(make)
    for seed in range(3):
        model(x(seed))  # running statistics that are not the first ones
    twin = copy.deepcopy(model)
    held = list(twin.parameters())
    adapt_norms(twin)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in held}
    for training in (False, True):
        model.train(training), twin.train(training)
        for m in (model, twin):
            m.zero_grad()
        want, got = model(x(9)), twin(x(9))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        want.square().sum().backward(), got.square().sum().backward()
        for p, q in zip(model.parameters(), held, strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)
    for name, value in model.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), value)


def test_evaluation_freezes_everything():
    model = net(NORMS["batch"])
    adapt_norms(model, rate=0.1)
    for seed in range(3):
        step(model, seed)
    model.eval()
    before = bits(model)
    step(model, 9)
    assert bits(model) == before and torch.equal(model(x(3)), model(x(3)))


def test_rate_0_is_the_norm_it_was_for_good():
    model, twin = net(NORMS["layer"]), net(NORMS["layer"])
    adapt_norms(twin, rate=0.0)
    for m in (model, twin):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for seed in range(10):
            step(m, seed, optimizer)
    torch.testing.assert_close(twin(x()), model(x()), rtol=1e-4, atol=1e-5)
    assert twin[1].mix.tolist() == [0, 1, 0] and twin[1].gain == 1


def test_gain_falls_where_the_gradient_grows_and_stays_within_its_bounds():
    model = net(NORMS["batch"])
    (first, second) = adapt_norms(model, rate=0.5, max_gain=2.0).values()
    for _ in range(20):
        first.seen.copy_(torch.tensor([0.0, 0.0, 3.0]))
        first._adapt(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(True))
        assert first.gain >= 0.5 and first.mix.sum().item() == pytest.approx(1)
    assert first.gain == 0.5 and first.mix[0] == 0
    for _ in range(20):
        first.seen.copy_(torch.tensor([0.0, 0.0, 1 / 3]))
        first._adapt(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(True))
    assert first.gain == 2.0 and first.mix.tolist() == [1, 0, 0]


def test_growth_is_that_of_the_gradient_between_two_norms():
    model = net(NORMS["batch"])
    first, second = adapt_norms(model).values()
    seen = []
    for norm in (first, second):
        norm.register_forward_hook(
            lambda m, a, out: out.register_hook(lambda g: seen.append(g * m.weight * m.gain)) and None
        )
    step(model, 1)
    assert first.seen[2].item() == pytest.approx((seen[1].norm() / seen[0].norm()).item(), rel=1e-4)
    assert second.seen[2] == 1  # nothing ran behind it


def test_noisy_batch_statistics_lose_their_weight():
    torch.manual_seed(0)
    small, large = AdaptiveNorm(6, rate=0.05), AdaptiveNorm(6, rate=0.05)
    for _ in range(60):
        small(torch.randn(2, 6))
        large(torch.randn(512, 6))
    assert small.mix[0] < 0.3 and large.mix[0] > small.mix[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_batch_teaches_nothing_and_stays_visible(bad):
    model = net(NORMS["batch"])
    adapt_norms(model, rate=0.1)
    step(model, 1)
    model(x(2))  # takes in what the first step showed
    before = bits(model)
    out = model(x(3).index_fill(0, torch.tensor([0]), bad))
    assert not out.isfinite().all()
    out.sum().backward()
    after = {n: b for n, b in bits(model).items() if "running" in n or "tracked" in n}
    assert all(before[n] == b for n, b in after.items())
    gains = [m.gain.clone() for m in model.modules() if isinstance(m, AdaptiveNorm)]
    model(x(4))
    assert [m.gain for m in model.modules() if isinstance(m, AdaptiveNorm)] == gains


def test_state_round_trip_deepcopy_and_pickle():
    model = net(NORMS["rms"])
    adapt_norms(model, rate=0.1)
    for seed in range(4):
        step(model, seed)
    model(x(7))
    other = net(NORMS["rms"], seed=5)
    adapt_norms(other, rate=0.1)
    other.load_state_dict(model.state_dict())
    assert bits(other) == bits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.eval()(x()), copy.deepcopy(model).eval()(x()))
        assert twin[1]._followed is twin[4]._followed is not model[1]._followed


def test_no_random_number_is_drawn_and_empty_batches_pass():
    model = net(NORMS["batch"])
    adapt_norms(model)
    rng, before = torch.get_rng_state(), bits(model)
    assert model(x(n=0)).shape == (0, 2) and bits(model) == before
    step(model, 1)
    assert torch.equal(torch.get_rng_state(), rng)


def test_what_cannot_be_replaced_is_refused():
    for model in (nn.LayerNorm(3), nn.Sequential(nn.GroupNorm(1, 3)), nn.Sequential(nn.LayerNorm((2, 3)))):
        before = bits(model)
        with pytest.raises(ValueError, match="no BatchNorm"):
            adapt_norms(model)
        assert bits(model) == before
    with pytest.raises(ValueError, match="rate"):
        adapt_norms(net(NORMS["rms"]), rate=2.0)
    with pytest.raises(ValueError, match="must be 6"):
        AdaptiveNorm(6)(torch.randn(2, 5))
