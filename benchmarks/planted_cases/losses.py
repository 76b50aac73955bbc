"""Faults in a loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.planted_cases.training import Training, adam, labels, mlp, planted, regression, sgd


@planted("log", kind="loss", b8=True)
def log_of_zero() -> Training:
    """Probabilities of a ReLU: one that is exactly 0 meets its label."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        p = F.relu(model(x))
        p = p / (p.sum(1, keepdim=True) + 1e-6)
        picked = p.gather(1, y[:, None])
        logs = picked.log()  # PLANTED log_of_zero
        return -logs.mean()

    model = mlp(outputs=3)
    return Training(model, loss, labels(), adam(model))


@planted("sqrt", kind="backward", b8=True)
def sqrt_at_zero() -> Training:
    """The distance of a pair of equal inputs."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        other = x.clone()
        other[1:] += 0.5
        square = (model(x) - model(other)).square().sum(1)
        distance = square.sqrt()  # PLANTED sqrt_at_zero
        return distance.mean() + (model(x) - y).square().mean()

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("nll_loss", kind="loss", b8=True)
def bad_label() -> Training:
    """A batch whose labels all point at the padding class, which has weight 0."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
        return F.cross_entropy(model(x), y, weight=weight)  # PLANTED bad_label

    model = mlp(outputs=4)
    data = labels()
    data[1] = (data[1][0], torch.full((16,), 3))
    return Training(model, loss, data, adam(model))


@planted("nll_loss", kind="loss")
def every_label_ignored() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        logits = model(x)
        criterion = nn.CrossEntropyLoss(ignore_index=-1)
        return criterion(logits, y)  # PLANTED every_label_ignored

    model = mlp(outputs=3)
    data = labels()
    data[2] = (data[2][0], torch.full((16,), -1))
    return Training(model, loss, data, adam(model))


@planted("acos", kind="backward")
def angle_of_parallel() -> Training:
    """The angle between a vector and itself: acos of exactly 1."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        a = F.normalize(model(x), dim=1)
        cosine = (a * a.detach()).sum(1)
        angle = torch.acos(cosine)  # PLANTED angle_of_parallel
        return angle.mean()

    model = mlp()  # one output: normalised it is 1 or -1
    return Training(model, loss, regression(), sgd(model))


@planted("log", kind="backward")
def where_bad_branch() -> Training:
    """The loss is finite; the branch that was left out gives 0 * inf in backward."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        rate = model(x).square() * (y > 0)
        logs = torch.log(rate)  # PLANTED where_bad_branch
        return torch.where(rate > 0, logs, torch.zeros_like(rate)).mean()

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("pow", kind="backward")
def norm_of_equal() -> Training:
    """Triplet distances written by hand; anchor and positive are the same sample."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        a, p, n = model(x), model(x), model(x.flip(0))
        near = (a - p).pow(2).sum(1)
        near = near**0.5  # PLANTED norm_of_equal
        far = ((a - n).pow(2).sum(1) + 1e-9) ** 0.5
        return F.relu(near - far + 1).mean()

    model = mlp(outputs=4)
    return Training(model, loss, regression(), sgd(model))


@planted("reciprocal", "pow", "div", kind="loss")
def inverse_distances() -> Training:
    """A repulsion over all pairs, the pair of a point with itself among them."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        z = model(x)
        d = torch.cdist(z, z)
        force = 1 / d  # PLANTED inverse_distances
        return (force * (1 - torch.eye(len(z)))).mean()

    model = mlp(outputs=2)
    return Training(model, loss, regression(), sgd(model))


@planted("mean", kind="loss")
def mean_of_empty_mask() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        error = (model(x) - y).square()
        hard = error[y > 100]
        return error.mean() + hard.mean()  # PLANTED mean_of_empty_mask

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("log", kind="loss")
def log_of_negative() -> Training:
    """A squared logarithmic error of a raw output."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        out = model(x)
        return (torch.log(out) - y.abs().log1p()).square().mean()  # PLANTED log_of_negative

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("pow", kind="loss")
def fractional_power() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        gap = model(x) - y
        penal = gap**1.5  # PLANTED fractional_power
        return penal.mean()

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("std", kind="loss")
def std_of_one() -> Training:
    """A variance penalty, and a last batch of one sample."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        out = model(x)
        spread = out.std(0)  # PLANTED std_of_one
        return (out - y).square().mean() + F.relu(1 - spread).mean()

    model = mlp()
    data = regression()
    data[2] = (data[2][0][:1], data[2][1][:1])
    return Training(model, loss, data, sgd(model))


@planted("div", kind="loss")
def angle_at_origin() -> Training:
    """The angle of a point by atan(y / x), at the origin; atan2 would have been safe."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        out = model(x) * (y > 0)
        slope = out[:, 1] / out[:, 0]  # PLANTED angle_at_origin
        return torch.atan(slope).mean()

    model = mlp(outputs=2)
    return Training(model, loss, regression(), sgd(model))


@planted("log", kind="loss")
def binary_cross_entropy_by_hand() -> Training:
    """A sigmoid that is 1 in float32: log(1 - p) is -inf, and 0 * -inf NaN."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        p = torch.sigmoid(model(x) * 400)
        t = (y > 0).float()
        yes = t * torch.log(p + 1e-8)
        no = (1 - t) * torch.log(1 - p)  # PLANTED binary_cross_entropy_by_hand
        return -(yes + no).mean()

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("sqrt", kind="backward")
def gradient_penalty() -> Training:
    """Double backward: the norm of the gradient in a dead zone."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        x = x.clone().requires_grad_()
        out = F.relu(model(x) - 0.3)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        norm = slope.square().sum(1).sqrt()  # PLANTED gradient_penalty
        return (norm - 1).square().mean() - out.mean()

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("linalg_vector_norm", kind="backward")
def second_derivative_of_norm() -> Training:
    """The gradient of a norm is 0 at 0 by convention; its own gradient is 0 / 0."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        x = torch.cat([torch.zeros(1, 4), x[1:]]).requires_grad_()
        energy = (model(x) * x.norm(dim=1, keepdim=True)).sum()  # PLANTED second_derivative_of_norm
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        moved = x - 0.1 * force
        (again,) = torch.autograd.grad(moved.square().sum(), x, create_graph=True)
        return again.square().mean()

    model = mlp()
    return Training(model, loss, regression(), sgd(model))


@planted("div", kind="loss")
def cosine_of_zero() -> Training:
    """A contrastive loss with an embedding that is 0 throughout."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        z = F.relu(model(x) - 0.4)
        z = z / z.norm(dim=1, keepdim=True)  # PLANTED cosine_of_zero
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))

    model = mlp(outputs=2)
    return Training(model, loss, regression(), sgd(model))
