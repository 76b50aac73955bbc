"""Batch renormalisation: torch's batch norm where nothing is corrected, the paper's algorithm where it is."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.nn.norm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from steadygrad.nn.norm.batch_renorm import renorm_bounds
from tests.nn.norm import oracles
from tests.nn.norm.test_conformance import bits, train_step

PAIRS = [
    (BatchRenorm1d, nn.BatchNorm1d, (6, 3)),
    (BatchRenorm1d, nn.BatchNorm1d, (6, 3, 4)),
    (BatchRenorm2d, nn.BatchNorm2d, (2, 3, 4, 5)),
    (BatchRenorm3d, nn.BatchNorm3d, (1, 3, 2, 4, 5)),
]
pairs = pytest.mark.parametrize(
    ("ours", "torchs", "shape"), PAIRS, ids=lambda x: str(getattr(x, "__name__", x))
)
AT_ONCE = {"warmup_steps": 0, "r_steps": 0, "d_steps": 0}


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": None, "eps": 1e-2}], ids=str)
@pairs
def test_without_corrections_it_is_torchs(ours, torchs, shape, settings):
    settings = {"momentum": 0.1, **settings}
    a, b = ours(3, r_max=1.0, d_max=0.0, **AT_ONCE, **settings), torchs(3, **settings)
    for step in range(4):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 3 + 1
        torch.testing.assert_close(train_step(a, x), train_step(b, x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()))


@pairs
def test_the_warm_up_is_batch_norm(ours, torchs, shape):
    a, b = ours(3, momentum=0.1, warmup_steps=2, r_steps=4, d_steps=4), torchs(3)
    differs = []
    for step in range(6):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 3 + 1
        differs.append(not torch.allclose(a(x), b(x), atol=1e-5))
    assert differs == [False] * 3 + [True] * 3  # the line from 1 and 0 starts after step 2


@pairs
def test_states_are_exchanged_with_torchs_and_evaluation_is_the_same(ours, torchs, shape):
    a, b = ours(3, **AT_ONCE), torchs(3)
    for _ in range(3):
        a(torch.randn(shape) * 2 + 1)
    b.load_state_dict(a.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(train_step(a.eval(), x), train_step(b.eval(), x))
    back = ours(3)
    back.load_state_dict(b.state_dict())
    assert bits(back) == bits(a)
    assert isinstance(a, torchs)


@pairs
def test_training_is_the_papers(ours, torchs, shape):
    layer = ours(3, momentum=0.3, r_max=1.5, d_max=0.5, **AT_ONCE, affine=False, dtype=torch.float64)
    twin = oracles.BatchRenorm(3, 1e-5, 0.3, 1.5, 0.5)
    for step in range(5):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step)).double() * (1 + step) + step
        want = twin(x.movedim(1, -1).reshape(-1, 3).numpy())
        got = layer(x).movedim(1, -1).reshape(-1, 3)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-7)  # the bounds are float32
    np.testing.assert_allclose(layer.running_mean.numpy(), twin.mean, rtol=1e-9)
    np.testing.assert_allclose(layer.running_var.numpy(), twin.var, rtol=1e-9)


def test_within_the_bounds_training_computes_what_evaluation_does():
    layer = BatchRenorm2d(3, r_max=100.0, d_max=100.0, **AT_ONCE)
    for _ in range(3):
        layer(torch.randn(2, 3, 4, 4) * 2 + 1)
    frozen = copy.deepcopy(layer).eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), frozen(x), rtol=1e-4, atol=1e-5)


def test_no_gradient_through_the_corrections():
    """By hand: r and d as constants in y = (x - m) / s * r + d."""
    layer = BatchRenorm1d(2, r_max=1.2, d_max=0.1, **AT_ONCE, affine=False, dtype=torch.float64)
    layer.running_mean.add_(0.5)
    layer.running_var.mul_(3.0)
    x = torch.randn(5, 2).double().requires_grad_()
    probe = torch.randn(5, 2).double()
    running = copy.deepcopy(layer)
    (layer(x) * probe).sum().backward()
    leaf = x.detach().clone().requires_grad_()
    std, mean = (leaf.var(0, correction=0) + layer.eps).sqrt(), leaf.mean(0)
    base = (running.running_var + layer.eps).sqrt()
    r = (std / base).detach().clamp(1 / 1.2, 1.2)
    d = ((mean - running.running_mean) / base).detach().clamp(-0.1, 0.1)
    (((leaf - mean) / std * r + d) * probe).sum().backward()
    torch.testing.assert_close(x.grad, leaf.grad)


def test_a_batch_of_one_trains_and_keeps_the_variance():
    layer = BatchRenorm1d(3, momentum=0.5, **AT_ONCE)
    x = torch.tensor([[0.5, -1.0, 100.0]])
    y = layer(x)
    torch.testing.assert_close(
        y, x.clamp(-5, 5), rtol=1e-4, atol=1e-4
    )  # d, with the fresh mean 0 and variance 1
    assert layer.running_var.tolist() == [1.0] * 3 and layer.running_mean.tolist() == [0.25, -0.5, 50.0]
    image = BatchRenorm2d(3, momentum=0.5, **AT_ONCE)
    y = image(torch.randn(1, 3, 4, 4).requires_grad_())
    y.square().sum().backward()
    assert (image.running_var != 1).all() and (image.weight.grad != 0).all()


def test_bounds_follow_the_papers_schedule():
    steps = torch.tensor([0, 5_000, 15_000, 25_000, 40_000, 10**6])
    r_max, d_max = renorm_bounds(steps, 3.0, 5.0, 5_000, 40_000, 25_000)
    torch.testing.assert_close(r_max, torch.tensor([1, 1, 1 + 2 * 10 / 35, 1 + 2 * 20 / 35, 3, 3]))
    torch.testing.assert_close(d_max, torch.tensor([0, 0, 2.5, 5, 5, 5]))
    assert [b.item() for b in renorm_bounds(torch.tensor(0), 3.0, 5.0, 0, 0, 0)] == [3.0, 5.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_max": 0.5}, "r_max must be at least 1.*got 0.5"),
        ({"d_max": -1.0}, "d_max must be at least 0.*got -1.0"),
        ({"warmup_steps": 30_000}, "warmup_steps must lie between 0 and r_steps = 40000.*got 30000"),
        ({"momentum": 2.0}, "momentum must be between 0 and 1.*got 2.0"),
        ({"r_max": float("inf")}, "r_max must be at least 1.*got inf"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm1d(3, **settings)


def test_bad_shapes_are_refused():
    for layer, shape in (
        (BatchRenorm1d(3), (2, 3, 4, 4)),
        (BatchRenorm2d(3), (2, 3)),
        (BatchRenorm3d(3), (2, 4, 1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=r"\(3\) takes .* dimensions of which the second is 3"):
            layer(torch.zeros(shape))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's own imports
def test_inductor_takes_the_statistics_of_before_the_step_in_the_backward_pass():
    """Without `snapshot` the gradients are wrong: the partitioner reads the buffers anew after they were written."""
    compiled, plain = BatchRenorm2d(3, momentum=0.5, **AT_ONCE), BatchRenorm2d(3, momentum=0.5, **AT_ONCE)
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    for _ in range(2):
        got, want = train_step(torch.compile(compiled, fullgraph=True), x), train_step(plain, x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
