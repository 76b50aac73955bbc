"""Homeostasis: the gains it measures, what it changes, and what it must not."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.plasticity import Homeostasis, nearest_orthogonal_, recurrent_factor, synaptic_factor


def deep_net(depth=30, gain=2.5, width=16):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())), nn.Linear(width, 3)
    )
    for layer in list(model)[: 2 * depth : 2]:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(width))
    return model


X, Y = torch.randn(32, 16, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3


def regulated(model, lr=0.02, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return optimizer, Homeostasis(model, optimizer, X, **options)


def train(model, optimizer, control, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if control is not None:
            control.step()


def test_gain_is_that_of_both_passes():
    """Of linear layers c Q the gain is c, exactly."""
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)), nn.Linear(16, 3))
    for layer in list(model)[:4]:
        nearest_orthogonal_(layer.weight).data.mul_(1.7)
    _, control = regulated(model)
    readings = control.calibrate(lambda: F.cross_entropy(model(X), Y), passes=40, orthogonal=False)
    # the last of them reads into 3 units, but is measured at what goes into that layer
    assert readings[0].gains == pytest.approx({"1": 1.7, "2": 1.7, "3": 1.7}, rel=1e-5)
    assert readings[-1].gains == pytest.approx({"1": 1, "2": 1, "3": 1}, rel=1e-3)
    assert torch.linalg.matrix_norm(model[2].weight, 2).item() == pytest.approx(1, rel=1e-3)
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1.7, rel=1e-5)


def test_calibration_stops_the_explosion_and_leaves_no_gradients():
    model = deep_net()
    _, control = regulated(model)
    rng, buffers = torch.get_rng_state(), [p.grad for p in model.parameters()]
    readings = control.calibrate(lambda: F.cross_entropy(model(X), Y))
    assert [p.grad for p in model.parameters()] == buffers and torch.equal(rng, torch.get_rng_state())
    growth = math.prod(readings[-1].gains.values())
    assert 0.1 < growth < 10


def test_a_run_is_bit_identical_while_nothing_is_to_be_changed():
    """Calibrated by hand, an infinite bound, and scaling on no step that is taken."""
    model = deep_net(6, 1.0)
    twin = copy.deepcopy(model)
    optimizer, control = regulated(model, max_change=math.inf, every=10)
    control.load_state_dict({"num_steps": 1, "calibrated": True})
    train(model, optimizer, control, 5)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.02), None, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_update_is_bounded_over_the_depth_and_keeps_its_direction():
    model = deep_net(6, 1.0)
    optimizer, control = regulated(model, lr=50.0, max_change=0.05, every=100)
    control.load_state_dict({"num_steps": 1, "calibrated": True})
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    asked = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    reading = control.step()
    assert reading.change > 0.05 and reading.kept == pytest.approx(0.05 / reading.change)
    for p, b, a in zip(model.parameters(), before, asked, strict=True):
        torch.testing.assert_close(p.detach() - b, reading.kept * a, rtol=1e-3, atol=1e-6)


def test_a_skipped_step_leaves_no_trace():
    model = deep_net(6)
    _, control = regulated(model)
    control.calibrate(lambda: F.cross_entropy(model(X), Y))
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(X), Y).backward()
    assert control.step() is None and control.num_steps == 0
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_non_finite_updates_stay_visible_and_scale_nothing_to_nan():
    model = deep_net(6)
    optimizer, control = regulated(model)
    control.calibrate(lambda: F.cross_entropy(model(X), Y))
    before = model[4].weight.detach().clone()
    F.cross_entropy(model(X * math.nan), Y).backward()
    optimizer.step()
    reading = control.step()
    assert reading.kept == 1 and set(reading.factors.values()) == {1.0}
    assert model[4].weight.isnan().all() and before.isfinite().all()


def test_it_refuses_evaluation_mode_and_a_net_that_is_not_calibrated():
    model = deep_net(6)
    optimizer, control = regulated(model)
    with pytest.raises(RuntimeError, match="not calibrated"):
        control.step()
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"evaluation mode.*model\.train"):
        control.calibrate(lambda: F.cross_entropy(model(X), Y))
    control.load_state_dict({"num_steps": 0, "calibrated": True})
    with pytest.raises(RuntimeError, match="evaluation mode"):
        control.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_state_round_trip_goes_on_bit_for_bit():
    model = deep_net(8)
    optimizer, control = regulated(model, every=3)
    control.calibrate(lambda: F.cross_entropy(model(X), Y))
    train(model, optimizer, control, 4)
    twin = copy.deepcopy(model)
    for module in twin.modules():  # the copy must not report to the first controller
        module._forward_pre_hooks.clear()
    other_optimizer, other = regulated(twin, every=3)
    other.load_state_dict(control.state_dict())
    train(model, optimizer, control, 4)
    train(twin, other_optimizer, other, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="not a state"):
        other.load_state_dict({"num_steps": 1})


def test_closing_takes_every_hook_off():
    model = deep_net(4)
    optimizer, control = regulated(model)
    control.close()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def test_norms_skips_and_tied_weights_are_left_alone():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Linear(8, 8) for _ in range(5))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            x = torch.tanh(self.a(x))
            x = x + torch.tanh(self.b(x))
            x = torch.tanh(self.d(torch.tanh(self.c(x))))
            return self.head(torch.tanh(self.norm(self.e(x))))

    model = Skip()
    control = Homeostasis(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(2, 8))
    assert list(control.layers) == ["c", "d"]
    assert "normalised" in control.left_out["e.weight"] and "joined" in control.left_out["b.weight"]
    with pytest.raises(ValueError, match="nothing to regulate"):
        Homeostasis(nn.Linear(2, 2), torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(1, 2))


class Last(nn.Module):
    def __init__(self, cell=False):
        super().__init__()
        torch.manual_seed(0)
        self.cell = cell
        self.rnn = nn.RNNCell(2, 8) if cell else nn.RNN(2, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        if not self.cell:
            return self.head(self.rnn(x)[0][:, -1])
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.rnn(x[:, t], h)
        return self.head(h)


@pytest.mark.parametrize("cell", [False, True])
def test_a_recurrence_that_explodes_is_brought_to_rest(cell):
    model = Last(cell)
    weight = model.rnn.weight_hh if cell else model.rnn.weight_hh_l0
    nn.init.orthogonal_(weight, 1.5)
    for name, bias in model.rnn.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(bias)
    x, y = torch.randn(16, 30, 2) * 1e-3, torch.randn(16, 1)  # so small that tanh is linear
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    control = Homeostasis(model, optimizer, x)
    readings = control.calibrate(lambda: F.mse_loss(model(x), y), passes=12, orthogonal=False)
    assert readings[0].growth["rnn"] > 0.08 and readings[-1].growth["rnn"] < 0.02
    assert torch.linalg.matrix_norm(weight, 2) < 1.1
    control.calibrate(lambda: F.mse_loss(model(x), y), passes=1)
    torch.testing.assert_close(weight @ weight.T, weight[0].square().sum() * torch.eye(8), atol=1e-5, rtol=0)
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    assert control.step().kept <= 1


def test_both_directions_are_refused():
    rnn = nn.LSTM(2, 4, bidirectional=True)
    with pytest.raises(ValueError, match="both directions"):
        Homeostasis(rnn, torch.optim.SGD(rnn.parameters(), lr=0.1), torch.randn(3, 1, 2))


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gain_that_cannot_be_used_changes_nothing(bad):
    assert synaptic_factor(bad, 1.0) == 1.0
    assert recurrent_factor(math.nan, 0.0, 1.0) == pytest.approx(1 / 1.4)
    assert recurrent_factor(0.0, 0.0, 4.0) == pytest.approx(1.4**-0.3)


def test_nearest_orthogonal():
    torch.manual_seed(0)
    w = torch.randn(12, 4)
    twin = w.clone()
    nearest_orthogonal_(w, 3)
    for block, old in zip(w.chunk(3), twin.chunk(3), strict=True):
        torch.testing.assert_close(block @ block.T, torch.eye(4), atol=1e-6, rtol=0)
        for _ in range(20):  # nothing orthogonal is nearer
            other = nn.init.orthogonal_(torch.empty(4, 4))
            assert (block - old).norm() <= (other - old).norm()
    bad = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match="inf or nan"):
        nearest_orthogonal_(bad)
    assert nearest_orthogonal_(torch.empty(0, 3)).shape == (0, 3)
