"""Healthy: losses that do not simply fall. They wait, jump, climb or hover, and end well."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    MLP,
    Batch,
    cross_entropy,
    digits,
    eval_error,
    generator,
    integer,
    log_uniform,
    regression,
    squared_error,
    start_weights,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


def sharpness(loss: Tensor, model: nn.Module, seed: int, rounds: int = 30) -> float:
    """The largest eigenvalue of the Hessian of a loss, by power iteration."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    vector = [torch.randn(p.shape, generator=generator(seed, 11)) for p in parameters]
    norm = math.nan
    for _ in range(rounds):
        norm = math.sqrt(sum(float(v.square().sum()) for v in vector))
        vector = [v / norm for v in vector]
        product = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
        vector = list(torch.autograd.grad(product, parameters, retain_graph=True))
    return math.sqrt(sum(float(v.square().sum()) for v in vector))


@healthy(net="mlp")
def edge_of_stability(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Full-batch descent: the sharpness climbs to 2 / lr and stays there, the loss falls in a zigzag."""
    data = regression(seed, features=10)
    batch = (data.train_x[:300], data.train_y[:300])
    model = MLP(10, 48, 2, 1, activation=nn.Tanh)
    share = uniform(random, 1.5, 1.9)
    lr = share / sharpness(squared_error(model, batch), model, seed)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr),
        squared_error,
        lambda i: batch,
        steps=600,
        score=unexplained(model, data),
        target=0.4,
        facts={"lr": lr, "lr_times_sharpness": share},
    )


@healthy(net="mlp", blind=True)
def catapult(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """lr times sharpness is 2.2 to 2.8 at the start: the loss is thrown up, into a flatter place, and recovers."""
    data = regression(seed, features=10)
    batch = (data.train_x[:300], data.train_y[:300])
    model = MLP(10, integer(random, 32, 64), 0, 1)
    share = uniform(random, 2.2, 2.8)
    lr = share / sharpness(squared_error(model, batch), model, seed)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr),
        squared_error,
        lambda i: batch,
        steps=600,
        score=unexplained(model, data),
        target=0.4,
        facts={"lr": lr, "lr_times_sharpness": share},
    )


@healthy(net="mlp")
def warm_restarts(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Cosine with restarts: the learning rate leaps a hundredfold and more, and the loss with it, again and again."""
    data, lr, period = digits(), log_uniform(random, 0.05, 0.12), integer(random, 60, 100)
    model = MLP(64, 64, 2, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed),
        steps=4 * period,
        score=eval_error(model, data),
        target=0.1,
        scheduler=CosineAnnealingWarmRestarts(optimizer, period, eta_min=lr / 200),
        facts={"lr": lr, "period": period},
    )


@healthy(net="mlp")
def parity_plateau(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The parity of three bits out of many: at chance for long, as no single bit tells anything, then solved."""
    bits = integer(random, 14, 18)
    which = torch.randperm(bits, generator=generator(seed, 3))[:3]

    def draw(count: int, g: torch.Generator) -> Batch:
        x = 2.0 * torch.randint(0, 2, (count, bits), generator=g) - 1
        return x, (x[:, which].prod(1) > 0).long()

    test = draw(1000, generator(seed, 10**6))
    model = MLP(bits, 128, 0, 2)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 3e-3, 6e-3)),
        cross_entropy,
        lambda i: draw(64, generator(seed, i)),
        steps=1200,
        score=lambda: float((model(test[0]).argmax(1) != test[1]).float().mean()),
        target=0.1,
        facts={"bits": bits},
    )


@healthy(net="mlp", blind=True)
def deep_linear_saddle(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A deep linear net from small weights: it begins near a saddle, with gradients close to nothing, and leaves it."""
    depth, gain = integer(random, 2, 3), uniform(random, 0.24, 0.32)
    data = regression(seed, features=10)
    data = data.map(y=lambda y: y / y.std())
    model = MLP(10, 32, depth, 1, activation=nn.Identity, gain=gain, orthogonal=True)
    start_weights(model.last, gain)
    start_weights(model.first, gain)
    lr = uniform(random, 0.025, 0.035)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr),
        squared_error,
        data.batches(seed),
        steps=1000,
        score=unexplained(model, data),
        target=0.5,
        facts={"lr": lr, "depth": depth, "gain": gain},
    )


@healthy(net="mlp")
def task_shift(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Half-way the labels mean something else: the loss leaps above its start, and the new task is learned."""
    data, shift = digits(), integer(random, 150, 250)
    renamed = torch.randperm(10, generator=generator(seed, 3))

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        return (x, y) if i < shift else (x, renamed[y])

    model = MLP(64, 64, 1, 10)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 2e-3, 4e-3)),
        cross_entropy,
        data.batches(seed, change=change),
        steps=500,
        score=lambda: float((model(data.test_x).argmax(1) != renamed[data.test_y]).float().mean()),
        target=0.1,
        at=shift,
    )


@healthy(net="mlp")
def growing_task(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A curriculum: two classes first, then one more every few steps. The loss leaps each time and mostly grows."""
    data, every = digits(), integer(random, 25, 40)
    of_class = [torch.nonzero(data.train_y == c)[:, 0] for c in range(10)]

    def batch(i: int) -> Batch:
        g, known = generator(seed, i), min(10, 2 + i // every)
        rows = torch.cat([rows for rows in of_class[:known]])
        rows = rows[torch.randint(0, len(rows), (64,), generator=g)]
        return data.train_x[rows], data.train_y[rows]

    model = MLP(64, 64, 1, 10)
    lr = log_uniform(random, 0.02, 0.05)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr, momentum=0.9),
        cross_entropy,
        batch,
        steps=9 * every + 60,
        score=eval_error(model, data),
        target=0.1,
        facts={"lr": lr, "every": every},
    )
