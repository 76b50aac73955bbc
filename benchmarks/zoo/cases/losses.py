"""What the loss sums, what the optimizer remembers, and data that changes its meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from benchmarks.zoo.data import Batch, Data
from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    classification,
    cross_entropy,
    digits,
    generator,
    integer,
    log_uniform,
    regressing,
    regression,
    squared_error,
    uniform,
)
from benchmarks.zoo.training import Training


def summed_cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum")


def summed_squares(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y, reduction="sum")


@failing("loss_reduction", "lr_too_large", net="mlp")
def summed_classifier_loss(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 4), log_uniform(random, 0.05, 0.2)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=lr)
    loss = cross_entropy if fixed else summed_cross_entropy
    facts = {"depth": depth, "lr": lr}
    return classification(
        model, optimizer, digits(), seed, loss=loss, size=256, steps=200, where="loss", facts=facts
    )


@failing("loss_reduction", "lr_too_large", net="mlp", blind=True)
def summed_regression_loss(random: RandomState, seed: int, fixed: bool) -> Training:
    outputs, lr = integer(random, 4, 12), uniform(random, 0.01, 0.03)
    model = MLP(20, 48, 1, outputs, nn.Tanh)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9)
    loss = squared_error if fixed else summed_squares
    facts = {"outputs": outputs, "lr": lr}
    data = regression(seed, outputs=outputs)
    return regressing(model, optimizer, data, seed, loss=loss, size=256, where="loss", facts=facts)


def resumed(optimizer: Adam, model: nn.Module, loss: Tensor, steps: int = 20_000) -> None:
    """Adam's state as of a long run: no bias correction left, its squares those of ``loss``'s gradient now."""
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        optimizer.state[parameter] = {
            "step": torch.tensor(float(steps)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": parameter.grad.square(),
        }
    optimizer.zero_grad()


@failing("stale_second_moment", "data_shift", net="mlp", visible=False)
def idle_inputs_wake_up(random: RandomState, seed: int, fixed: bool) -> Training:
    """Half of the inputs are silent for long; the slow average of squares is tiny there when they start to speak."""
    at, loudness, lr = integer(random, 60, 120), uniform(random, 2, 4), uniform(random, 0.01, 0.02)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        extra = torch.randn(len(x), 64, generator=generator(seed + 5, i))
        return torch.cat([x, extra * (loudness if i >= at else 1e-4)], 1), y

    model = MLP(128, 64, 3, 10)
    with torch.no_grad():
        model.first.weight[:, 64:] *= 0.01
    optimizer = AdamW(model.parameters(), lr=lr, betas=(0.9, 0.9 if fixed else 0.9999), weight_decay=0.0)
    plain = digits()
    noise = torch.randn(len(plain.test_x), 64, generator=generator(seed + 5, 10**6))
    data = Data(plain.train_x, plain.train_y, torch.cat([plain.test_x, noise * loudness], 1), plain.test_y)
    training = classification(
        model, optimizer, data, seed, change=change, at=at, facts={"loudness": loudness, "lr": lr}
    )
    resumed(optimizer, model, cross_entropy(model, training.batch(0)))
    return training


@failing("stale_second_moment", net="mlp", visible=False, blind=True)
def loss_weight_jump(random: RandomState, seed: int, fixed: bool) -> Training:
    """The loss is multiplied at one step; Adam with a long memory divides by squares of before."""
    at, factor, lr = integer(random, 60, 120), log_uniform(random, 1e3, 1e5), uniform(random, 0.02, 0.04)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            t.optimizer.zero_grad()
            loss = t.loss(t.model, t.batch(i)) * (factor if i >= at else 1.0)
            loss.backward()
            t.optimizer.step()
            yield float(loss.detach())

    model = MLP(20, 64, 3, 1)
    optimizer = Adam(model.parameters(), lr=lr, betas=(0.9, 0.95 if fixed else 0.9999))
    training = regressing(
        model, optimizer, regression(seed), seed, loop=loop, at=at, facts={"factor": factor, "lr": lr}
    )
    resumed(optimizer, model, squared_error(model, training.batch(0)))
    return training


@failing("data_shift", "unscaled_inputs", net="mlp", visible=False)
def inputs_change_unit(random: RandomState, seed: int, fixed: bool) -> Training:
    """From one step on the inputs come in another unit and with the other sign."""
    at, scale = integer(random, 80, 140), log_uniform(random, 20, 200)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        return (-scale * x, y) if i >= at and not fixed else (x, y)

    model = MLP(64, 64, 2, 10)
    optimizer = SGD(model.parameters(), lr=0.05)
    return classification(model, optimizer, digits(), seed, change=change, at=at, facts={"scale": scale})


@failing("data_shift", net="mlp", visible=False, blind=True)
def labels_change_meaning(random: RandomState, seed: int, fixed: bool) -> Training:
    """From one step on the classes are numbered differently; the run is judged by the old numbers."""
    at, shift = integer(random, 80, 140), integer(random, 1, 9)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        return (x, (y + shift) % 10) if i >= at and not fixed else (x, y)

    model = MLP(64, 64, 2, 10)
    optimizer = Adam(model.parameters(), lr=2e-3)
    return classification(model, optimizer, digits(), seed, change=change, at=at, facts={"shift": shift})


@failing("data_shift", net="mlp", visible=False)
def sorted_by_class(random: RandomState, seed: int, fixed: bool) -> Training:
    """Nobody shuffled: one class after the other, each forgotten as the next one comes."""
    per_class, depth = integer(random, 20, 30), integer(random, 1, 3)
    shuffled = digits()
    by_class = [(shuffled.train_y == k).nonzero()[:, 0] for k in range(10)]

    def batch(i: int) -> Batch:
        kind = by_class[i // per_class % 10]
        rows = kind[torch.randint(0, len(kind), (64,), generator=generator(seed, i))]
        return shuffled.train_x[rows], shuffled.train_y[rows]

    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.5)
    training = classification(
        model, optimizer, shuffled, seed, steps=10 * per_class, facts={"per_class": per_class}
    )
    if not fixed:
        training.batch = batch
    return training
