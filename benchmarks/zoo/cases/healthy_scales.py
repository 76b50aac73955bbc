"""Healthy: numbers that are large, small or mostly zero, in a network that is made for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    MLP,
    cancer,
    cross_entropy,
    digits,
    eval_error,
    integer,
    log_uniform,
    raw_cancer,
    raw_digits,
    regression,
    squared_error,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


@healthy(net="mlp")
def raw_pixels_layer_norm(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Pixels from 0 to 255 that meet a LayerNorm first."""
    data, lr = raw_digits(), log_uniform(random, 1e-3, 4e-3)
    model = nn.Sequential(nn.LayerNorm(64), MLP(64, integer(random, 48, 96), 1, 10))
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        cross_entropy,
        data.batches(seed),
        steps=300,
        score=eval_error(model, data),
        target=0.1,
        facts={"lr": lr},
    )


@healthy(net="mlp", blind=True)
def raw_columns_batch_norm(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Columns of units from 1e-3 to 4e3 that meet a BatchNorm first."""
    data, lr = raw_cancer(), log_uniform(random, 0.02, 0.1)
    model = nn.Sequential(nn.BatchNorm1d(30), MLP(30, integer(random, 32, 64), 1, 2))
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr, momentum=0.9),
        cross_entropy,
        data.batches(seed),
        steps=200,
        score=eval_error(model, data),
        target=0.1,
        facts={"lr": lr},
    )


class Scaled(nn.Module):
    """Predictions in the units of the targets: mean and standard deviation of the training set are built in."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", y.mean(0))
        self.register_buffer("std", y.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.std + self.mean


@healthy(net="mlp")
def large_targets(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Prices of hundreds to hundreds of thousands, an output scaled to them, Adam: losses of 1e4 to 1e11."""
    scale = log_uniform(random, 3e2, 3e5)
    data = regression(seed).map(y=lambda y: scale * (3 + y))
    model = Scaled(MLP(20, 64, 1, 1), data.train_y)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 4e-3)),
        squared_error,
        data.batches(seed),
        steps=300,
        score=unexplained(model, data),
        target=0.3,
        facts={"scale": scale},
    )


@healthy(net="mlp")
def summed_loss(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The loss is a sum over the batch, and the learning rate is made for it."""
    data, size = digits(), integer(random, 32, 128)
    lr = log_uniform(random, 0.03, 0.1) / size
    model = MLP(64, 64, 2, 10)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr, momentum=0.9),
        loss,
        data.batches(seed, size),
        steps=300,
        score=eval_error(model, data),
        target=0.08,
        facts={"lr": lr, "size": size},
    )


@healthy(net="mlp")
def sparse_relu(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Biases below zero keep most units silent on most inputs, and it learns."""
    data, bias = digits(), uniform(random, 0.6, 1.0)
    model = MLP(64, 128, 1, 10)
    with torch.no_grad():
        model.first.bias.fill_(-bias)
        silent = float((model.first(data.test_x) <= 0).float().mean())
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 3e-3)),
        cross_entropy,
        data.batches(seed),
        steps=250,
        score=eval_error(model, data),
        target=0.08,
        facts={"bias": bias, "silent": silent},
    )


@healthy(net="mlp", blind=True)
def heavy_momentum(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Momentum 0.99 with a learning rate a hundredth of the usual."""
    data, lr = cancer(), log_uniform(random, 3e-4, 1e-3)
    model = MLP(30, 48, 1, 2)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr, momentum=0.99),
        cross_entropy,
        data.batches(seed),
        steps=500,
        score=eval_error(model, data),
        target=0.08,
        facts={"lr": lr},
    )
