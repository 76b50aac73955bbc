"""Sharpness against the explicit Hessian in float64, and the limit that is made of it against gradient descent."""

import math

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.func import functional_call

from steadygrad.forecasting.sharpness import FLOOR, largest_stable_lr, sharpness

F = nn.functional


def problem(activation, loss, seed, dtype=torch.float64):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 9), activation(), nn.Linear(9, 9), activation(), nn.Linear(9, 3)).to(
        dtype
    )
    x = torch.randn(24, 5, dtype=dtype)
    if loss == "cross entropy":
        y = torch.randint(0, 3, (24,))
        return net, lambda out: F.cross_entropy(out, y), x
    y = torch.randn(24, 3, dtype=dtype)
    return net, lambda out: F.mse_loss(out, y), x


def explicit(net, loss, x, adaptive):
    """The largest |eigenvalue| of the Hessian, element by element, in float64."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in params.values()]

    def of_flat(flat):
        parts = (part.view_as(p) for part, p in zip(flat.split(sizes), params.values(), strict=True))
        return loss(functional_call(net, dict(zip(params, parts, strict=True)), (x,)))

    flat = torch.cat([p.reshape(-1) for p in params.values()])
    hessian = torch.autograd.functional.hessian(of_flat, flat)
    if adaptive:
        size = torch.autograd.functional.jacobian(of_flat, flat).abs()
        scale = (size + FLOOR * size.mean()).rsqrt()
        hessian = scale[:, None] * hessian * scale
    return float(torch.linalg.eigvalsh(hessian).abs().max())


@pytest.mark.parametrize("loss", ["cross entropy", "mse"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("adaptive", [False, True])
def test_it_is_the_largest_eigenvalue_of_the_hessian(activation, loss, adaptive):
    for seed in range(3):
        net, of, x = problem(activation, loss, seed)
        found = sharpness([of(net(x))], list(net.parameters()), adaptive=adaptive)
        assert found.how == "double backward" and found.products <= 10
        assert found.value == pytest.approx(explicit(net, of, x, adaptive), rel=0.05), seed


def test_a_negative_eigenvalue_counts_by_its_size():
    w = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    loss = (w.square() * torch.tensor([1.0, -4.0, 0.5])).sum()
    assert sharpness([loss], [w]).value == pytest.approx(8.0, rel=1e-3)


def test_two_eigenvalues_of_one_size_and_opposite_signs():
    w = torch.tensor([0.3, -0.2], requires_grad=True)
    assert sharpness([(w.square() * torch.tensor([3.0, -3.0])).sum()], [w]).value == pytest.approx(
        6.0, rel=1e-3
    )


def test_several_roots_are_summed_and_a_linear_loss_is_flat():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.ones(3, requires_grad=True)
    assert sharpness([w[0] ** 2, 3 * w[0] ** 2], [w, unused]).value == pytest.approx(8.0)
    assert sharpness([w.sum()], [w]).value == 0.0
    assert largest_stable_lr(0.0) == math.inf


class Cube(torch.autograd.Function):
    """x^3 without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


@pytest.mark.parametrize("adaptive", [False, True])
def test_differences_stand_in_where_there_is_no_second_derivative(adaptive):
    """In float32, as nets are; then the loss is differentiated again through the graph that was made before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    before = [p.detach().clone() for p in net.parameters()]
    params = list(net.parameters())

    def loss_of(cube):
        return F.mse_loss(cube(net(x)), y)

    def gradients():
        return list(torch.autograd.grad(loss_of(Cube.apply), params))

    loss = loss_of(Cube.apply)
    found = sharpness([loss], params, adaptive=adaptive, gradients=gradients)
    loss.backward()  # the graph is as good as before
    for p, q in zip(params, before, strict=True):
        assert torch.equal(p, q)
    net.double()
    x, y = x.double(), y.double()
    true = explicit(net, lambda out: F.mse_loss(out**3, y), x, adaptive)
    assert found.how == "differences"
    assert found.value == pytest.approx(true, rel=0.2)


def test_without_a_second_derivative_and_without_gradients_it_says_so():
    x = torch.ones(3, requires_grad=True)
    found = sharpness([Cube.apply(x).sum()], [x])
    assert math.isnan(found.value) and "second derivative" in found.how


def test_a_graph_that_can_be_walked_once_only_is_no_error():
    """A reentrant checkpoint refuses autograd.grad."""
    layer, last = nn.Linear(3, 3), nn.Linear(3, 1)
    hidden = layer(torch.ones(2, 3))
    loss = last(torch.utils.checkpoint.checkpoint(torch.tanh, hidden, use_reentrant=True)).square().sum()
    found = sharpness([loss], [*layer.parameters(), *last.parameters()])
    assert math.isnan(found.value) and "more than once" in found.how
    loss.backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_none(bad):
    w = torch.ones(2, requires_grad=True)
    assert math.isnan(sharpness([(w * bad).sum()], [w]).value)
    assert math.isnan(largest_stable_lr(math.nan))


def test_nothing_is_left_behind():
    net, of, x = problem(nn.Tanh, "mse", 0)
    net[0].weight.requires_grad_(False)
    state, loss = torch.get_rng_state(), of(net(x))
    versions = [p._version for p in net.parameters()]
    sharpness([loss], list(net.parameters()), adaptive=True)
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert [p._version for p in net.parameters()] == versions
    loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype):
    net, of, x = problem(nn.Tanh, "cross entropy", 1)
    true = {adaptive: explicit(net, of, x, adaptive) for adaptive in (False, True)}
    net, x = net.to(dtype), x.to(dtype)
    for adaptive in (False, True):
        found = sharpness([of(net(x).float())], list(net.parameters()), adaptive=adaptive)
        assert found.value == pytest.approx(true[adaptive], rel=0.25)


CURVES = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)


def trained(make, lr, steps=400, start=1.0):
    """|w| after steps on sum(curve w^2 / 2), whose sharpness is 7."""
    w = torch.full((3,), start, dtype=torch.float64, requires_grad=True)
    optimizer = make([w], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (CURVES * w.square() / 2).sum().backward()
        optimizer.step()
    return float(w.detach().abs().max())


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_gradient_descent_converges_below_the_limit_and_diverges_above(momentum):
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found = sharpness([(CURVES * w.square() / 2).sum()], [w]).value
    limit = largest_stable_lr(found, momentum=momentum)

    def sgd(params, lr):
        return torch.optim.SGD(params, lr=lr, momentum=momentum)

    assert trained(sgd, 0.97 * limit) < 1.0
    assert trained(sgd, 1.03 * limit) > 1e3


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_on_a_quadratic_with_a_frozen_preconditioner(beta1):
    """With its second moment held, Adam is gradient descent with an average: the limit is exact for that."""
    sharp = 7.0
    limit = largest_stable_lr(sharp, beta1=beta1)

    def end(lr):
        w, m = 1.0, 0.0
        for _ in range(2000):
            m = beta1 * m + (1 - beta1) * sharp * w
            w -= lr * m
            if abs(w) > 1e9:
                break
        return abs(w)

    assert end(0.97 * limit) < 1e-3 and end(1.03 * limit) > 1e3
