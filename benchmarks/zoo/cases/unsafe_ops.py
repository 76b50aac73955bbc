"""Formulas written by hand that leave their domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.data import Data, split
from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    cancer,
    classification,
    cross_entropy,
    digits,
    generator,
    integer,
    log_uniform,
    raw_digits,
    uniform,
)
from benchmarks.zoo.training import Training


def one_hot_bce(model: nn.Module, batch: Any) -> Tensor:
    """Ten yes-or-no questions; log(p) and log(1 - p) of a probability that may be exactly 0 or 1."""
    x, y = batch
    p, t = torch.sigmoid(model(x)), F.one_hot(y, 10).float()
    return -(t * torch.log(p) + (1 - t) * torch.log(1 - p)).sum(1).mean()


def safe_one_hot_bce(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.binary_cross_entropy_with_logits(model(x), F.one_hot(y, 10).float(), reduction="sum") / len(x)


@failing("unsafe_op", net="mlp", visible=False)
def log_of_confident_probability(random: RandomState, seed: int, fixed: bool) -> Training:
    """Binary cross entropy by hand: 1 - p becomes 0 once the net is sure."""
    depth, lr = integer(random, 2, 4), uniform(random, 0.03, 0.05)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9)
    loss = safe_one_hot_bce if fixed else one_hot_bce
    data = digits()

    def score() -> float:
        return float((model(data.test_x).argmax(1) != data.test_y).float().mean())

    facts = {"depth": depth, "lr": lr}
    return Training(model, optimizer, loss, data.batches(seed), 300, score, 0.3, where="loss", facts=facts)


def log_of_softmax(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    p = torch.softmax(model(x), 1)
    return -torch.log(p[torch.arange(len(y)), y]).mean()


@failing("unsafe_op", "output_scale", net="mlp", blind=True)
def log_of_underflown_softmax(random: RandomState, seed: int, fixed: bool) -> Training:
    """log(softmax(x)) with logits so far apart that the probability of the label is 0 in float32."""
    depth, scale = integer(random, 1, 3), log_uniform(random, 60, 150)
    model = MLP(64, 64, depth, 10)
    with torch.no_grad():
        model.last.weight.mul_(scale)
    optimizer = Adam(model.parameters(), lr=3e-3)
    loss = cross_entropy if fixed else log_of_softmax
    facts = {"depth": depth, "scale": scale}
    return classification(model, optimizer, digits(), seed, loss=loss, target=10.0, where="loss", facts=facts)


class Standardise(nn.Module):
    """Each column with mean 0 and deviation 1 over the batch, with or without something below the fraction."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / torch.sqrt(x.var(0) + self.eps)


@failing("unsafe_op", net="mlp")
def constant_feature_standardised(random: RandomState, seed: int, fixed: bool) -> Training:
    """Digits have pixels that are always 0: their deviation is 0."""
    depth, lr = integer(random, 1, 3), log_uniform(random, 0.03, 0.1)
    model = nn.Sequential(Standardise(1e-3 if fixed else 0.0), MLP(64, 48, depth, 10))
    optimizer = SGD(model.parameters(), lr=lr)
    data = raw_digits().map(x=lambda x: x / 255)
    return classification(model, optimizer, data, seed, where="0", facts={"depth": depth, "lr": lr})


@failing("unsafe_op", net="mlp", visible=False)
def dead_unit_standardised(random: RandomState, seed: int, fixed: bool) -> Training:
    """A norm by hand after a ReLU: its gradient is 0/0 once a unit is off for a whole batch."""
    depth, layer, lr = integer(random, 2, 3), integer(random, 0, 1), uniform(random, 0.01, 0.02)
    model = MLP(64, 64, depth, 10)
    model.blocks[layer].activation = nn.Sequential(nn.ReLU(), Standardise(1e-5 if fixed else 0.0))
    optimizer = Adam(model.parameters(), lr=lr)
    where = f"blocks.{layer}.activation.1"
    return classification(
        model, optimizer, digits(), seed, size=16, target=1.6, where=where, facts={"depth": depth, "lr": lr}
    )


@failing("unsafe_op", net="mlp", visible=False, blind=True)
def empty_mask(random: RandomState, seed: int, fixed: bool) -> Training:
    """An extra term over the samples of one class: a batch without any divides by zero."""
    size, kind, weight = integer(random, 20, 40), integer(random, 0, 9), uniform(random, 0.05, 0.3)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        each = F.cross_entropy(model(x), y, reduction="none")
        mask = (y == kind).float()
        count = mask.sum().clamp_min(1) if fixed else mask.sum()
        return each.mean() + weight * (each * mask).sum() / count

    model = MLP(64, 64, 3, 10)
    optimizer = Adam(model.parameters(), lr=1e-3)
    training = classification(
        model, optimizer, digits(), seed, loss=loss, size=size, where="loss", facts={"size": size}
    )
    training.at = next((i for i in range(250) if not (training.batch(i)[1] == kind).any()), None)
    return training


def contrastive(distance: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """Pull pairs of one class together, push others apart by 1, over all pairs of the batch."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        z = model(x)
        d = distance((z[:, None] - z[None]).square().sum(-1))
        same = y[:, None] == y[None]
        return torch.where(same, d, F.relu(1 - d)).mean() + F.relu(1 - d)[~same].mean()

    return loss


@failing("unsafe_op", net="mlp")
def sqrt_of_zero_distance(random: RandomState, seed: int, fixed: bool) -> Training:
    """The distance of a sample to itself is 0; the slope of its square root is not finite."""
    depth, width = integer(random, 1, 3), integer(random, 4, 12)
    model = MLP(64, 48, depth, width)
    optimizer = Adam(model.parameters(), lr=2e-3)
    safe, unsafe = contrastive(lambda d: torch.sqrt(d + 1e-6)), contrastive(torch.sqrt)
    data = digits()

    def score() -> float:
        return float(safe(model, data.test))

    loss = safe if fixed else unsafe
    facts = {"depth": depth, "width": width}
    return Training(model, optimizer, loss, data.batches(seed), 150, score, 0.5, where="loss", facts=facts)


def directions(seed: int) -> Data:
    """Inputs (B, 8) and the direction of a linear map of them, unit vectors (B, 2)."""
    g = generator(seed, 67)
    x, matrix = torch.randn(1200, 8, generator=g), torch.randn(8, 2, generator=g)
    return split(x, F.normalize(x @ matrix, dim=1), test=200)


@failing("unsafe_op", net="mlp", visible=False)
def arccos_of_exact_match(random: RandomState, seed: int, fixed: bool) -> Training:
    """The angle between prediction and target: acos has no finite slope at 1, where the run wants to go."""
    depth, lr = integer(random, 1, 2), uniform(random, 2e-3, 5e-3)
    limit = 1 - 1e-6 if fixed else None
    data = directions(seed)
    model = MLP(8, 48, depth, 2, nn.Tanh)

    def angle(limit: float | None) -> Callable[[nn.Module, Any], Tensor]:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            x, y = batch
            cosine = F.cosine_similarity(model(x), y, dim=1, eps=1e-12)
            return torch.acos(cosine if limit is None else cosine.clamp(-limit, limit)).mean()

        return loss

    def score() -> float:
        return float(angle(1 - 1e-6)(model, data.test))

    optimizer = Adam(model.parameters(), lr=lr)
    facts = {"depth": depth, "lr": lr}
    return Training(
        model, optimizer, angle(limit), data.batches(seed), 400, score, 0.3, where="loss", facts=facts
    )


class Softplus(nn.Module):
    """log(1 + exp(x)) as in the book."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(1 + torch.exp(x))


@failing("unsafe_op", net="mlp", blind=True)
def exp_overflow_in_softplus(random: RandomState, seed: int, fixed: bool) -> Training:
    """exp(x) is infinite from 89 on; F.softplus is not. A wide first layer gets there."""
    depth, scale = integer(random, 1, 2), log_uniform(random, 60, 150)
    first = nn.Linear(30, 32)
    with torch.no_grad():
        first.weight.mul_(scale)
    activation = nn.Softplus() if fixed else Softplus()
    model = nn.Sequential(first, activation, nn.LayerNorm(32), MLP(32, 32, depth, 2))
    optimizer = Adam(model.parameters(), lr=3e-3)
    facts = {"depth": depth, "scale": scale}
    return classification(
        model, optimizer, cancer(), seed, size=32, steps=150, target=0.5, where="1", facts=facts
    )


class Unit(nn.Module):
    """Each row divided by its length."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.norm(dim=1, keepdim=True) + self.eps)


@failing("unsafe_op", "bad_batch", net="mlp", visible=False)
def blank_sample_normalised(random: RandomState, seed: int, fixed: bool) -> Training:
    """A few samples are blank; the first batch that holds one divides 0 by 0."""
    at, row, depth = integer(random, 40, 120), integer(random, 0, 31), integer(random, 1, 3)

    def change(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if i >= at and (i - at) % 10 == 0:
            x[row] = 0.0
        return x, y

    model = nn.Sequential(Unit(1e-6 if fixed else 0.0), MLP(64, 64, depth, 10))
    optimizer = Adam(model.parameters(), lr=3e-3)
    return classification(
        model,
        optimizer,
        digits(),
        seed,
        size=32,
        change=change,
        at=at,
        where="0",
        facts={"depth": depth},
    )
