"""Embeddings and energies: similarities too large for their softmax, differences without a margin, norms at 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import MLP, digits, generator, integer, log_uniform, moons, uniform
from benchmarks.zoo.training import Training


def two_views(seed: int, size: int = 64):
    """Digits twice, each time with other noise; and the ranking error of an embedding on such pairs."""
    batches = digits().batches(seed, size)

    def batch(i):
        x, _ = batches(i)
        g = generator(seed + 103, i)
        return x + 0.7 * torch.randn(x.shape, generator=g), x + 0.7 * torch.randn(x.shape, generator=g)

    def score(model: nn.Module) -> float:
        """Share of pairs whose nearest neighbour, by cosine, is another digit's view. By chance 1."""
        a, b = (F.normalize(model(x), dim=1) for x in batch(-1))
        return float(((a @ b.T).argmax(1) != torch.arange(len(a))).float().mean())

    return batch, score


def pairs_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(a @ b.T / temperature, torch.arange(len(a)))


@failing("output_scale", net="mlp")
def contrastive_temperature(random: RandomState, seed: int, fixed: bool) -> Training:
    """Similarities over a temperature of a thousandth: a softmax that is always sure, mostly of the wrong one."""
    temperature = log_uniform(random, 3e-4, 1e-3)
    rate = uniform(random, 0.3, 0.5)
    model = MLP(64, 64, 3, 16, gain=0.7)
    batch, score = two_views(seed)

    def loss(model, views):
        a, b = (F.normalize(model(x), dim=1) for x in views)
        return pairs_loss(a, b, 0.2 if fixed else temperature)

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate),
        loss=loss,
        batch=batch,
        steps=200,
        score=lambda: score(model),
        target=0.55,
        where="loss",
        facts={"temperature": temperature, "lr": rate},
    )


@failing("output_scale", net="mlp", blind=True)
def contrastive_not_normalised(random: RandomState, seed: int, fixed: bool) -> Training:
    """The products of raw embeddings, large from the start, over a temperature meant for cosines."""
    gain, rate = uniform(random, 4.0, 8.0), uniform(random, 0.02, 0.05)
    model = MLP(64, 64, 2, 32)
    with torch.no_grad():
        model.last.weight *= gain
    batch, score = two_views(seed)

    def loss(model, views):
        a, b = (F.normalize(model(x), dim=1) if fixed else model(x) for x in views)
        return pairs_loss(a, b, 0.1)

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate, momentum=0.9),
        loss=loss,
        batch=batch,
        steps=200,
        score=lambda: score(model),
        target=0.55,
        where="loss",
        facts={"gain": gain, "lr": rate},
    )


@failing("unsafe_op", net="mlp", visible=False)
def distance_of_equals(random: RandomState, seed: int, fixed: bool) -> Training:
    """A margin on distances: where two views are equal, the square root at 0 has no gradient."""
    at, row = integer(random, 30, 90), integer(random, 0, 63)
    model = MLP(64, 64, 2, 16)
    views, score = two_views(seed)

    def batch(i):
        a, b = views(i)
        if i == at:
            b[row] = a[row]
        return a, b

    def loss(model, views):
        a, b = (model(x) for x in views)
        smallest = 1e-12 if fixed else 0.0
        near = torch.sqrt(((a - b) ** 2).sum(1) + smallest)
        far = torch.sqrt(((a - b.roll(1, 0)) ** 2).sum(1) + smallest)
        return F.relu(near - far + 5.0).mean()

    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=2e-3),
        loss=loss,
        batch=batch,
        steps=300,
        score=lambda: score(model),
        target=0.75,
        at=at,
        where="loss",
    )


@failing("unbounded_objective", net="mlp")
def energy_unbounded(random: RandomState, seed: int, fixed: bool) -> Training:
    """Low energy for data, high energy for noise, and nothing that says how low and how high."""
    rate = uniform(random, 0.01, 0.03)
    model = MLP(2, 48, 2, 1)
    data = moons(seed)
    batches = data.batches(seed)

    def batch(i):
        return batches(i)[0], 4 * torch.rand(64, 2, generator=generator(seed + 107, i)) - 2

    def loss(model, batch):
        low, high = (model(x) for x in batch)
        if fixed:
            return F.softplus(low).mean() + F.softplus(-high).mean()
        return low.mean() - high.mean()

    def score():
        low, high = (model(x) for x in batch(-1))
        return float(F.softplus(low).mean() + F.softplus(-high).mean())

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate, momentum=0.9),
        loss=loss,
        batch=batch,
        steps=300,
        score=score,
        target=1.1,  # 1.39 for energies of 0
        where="loss",
        facts={"lr": rate},
    )


@failing("unsafe_op", net="gan", blind=True)
def gradient_penalty_at_zero(random: RandomState, seed: int, fixed: bool) -> Training:
    """(|gradient| - 1)^2 by hand: where all units of the critic are off the gradient is 0, and its norm has none."""
    shift, rate = uniform(random, 0.3, 0.7), log_uniform(random, 2e-3, 5e-3)
    model = MLP(2, 32, 1, 1)
    with torch.no_grad():
        model.blocks[0].linear.bias -= shift
    data = moons(seed)
    batches = data.batches(seed)

    def batch(i):
        return batches(i)[0], 1.5 * torch.randn(64, 2, generator=generator(seed + 109, i))

    def loss(model, batch):
        real, noise = batch
        between = (0.5 * (real + noise)).requires_grad_()
        (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
        length = torch.sqrt((slope**2).sum(1) + (1e-12 if fixed else 0.0))
        return model(noise).mean() - model(real).mean() + 3 * ((length - 1) ** 2).mean()

    def score():
        real, noise = batch(-1)
        return float(model(noise).mean() - model(real).mean())

    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=rate),
        loss=loss,
        batch=batch,
        steps=200,
        score=score,
        target=-0.1,
        where="loss",
        facts={"shift": shift, "lr": rate},
    )


@failing("unbounded_objective", net="mlp", blind=True)
def unlearning_by_ascent(random: RandomState, seed: int, fixed: bool) -> Training:
    """One class is to be forgotten by making its loss large, with no bound on how large."""
    weight, forgotten = uniform(random, 0.5, 2.0), integer(random, 0, 9)
    data = digits()
    model = MLP(64, 64, 2, 10)
    enough = 4.0  # more than the ln 10 of a guess

    def loss(model, batch):
        x, y = batch
        each = F.cross_entropy(model(x), y, reduction="none")
        away = each[y == forgotten].sum() / 16
        if fixed:
            away = each[y == forgotten].clamp(max=enough).sum() / 16
        return each[y != forgotten].mean() - weight * away

    def score():
        """The loss on the classes to keep."""
        keep = data.test_y != forgotten
        return float(F.cross_entropy(model(data.test_x[keep]), data.test_y[keep]))

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.02, momentum=0.9),
        loss=loss,
        batch=data.batches(seed),
        steps=300,
        score=score,
        target=0.8,
        where="loss",
        facts={"weight": weight},
    )
