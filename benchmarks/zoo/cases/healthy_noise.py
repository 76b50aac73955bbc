"""Healthy: honest noise in the data, and how it looks in the loss."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    MLP,
    Data,
    cross_entropy,
    digits,
    eval_error,
    generator,
    integer,
    log_uniform,
    regression,
    squared_error,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


@healthy(net="mlp")
def rare_target_spikes(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """One target in a thousand is 25 to 50 times as far out: the loss of its batch leaps, and is back at once."""
    data, size = regression(seed), uniform(random, 25.0, 50.0)

    def spoil(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        g = generator(seed, 10**6 + i)
        rare = torch.rand(y.shape, generator=g) < 1e-3
        return x, torch.where(rare, y * size, y)

    model = MLP(20, 64, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), log_uniform(random, 0.005, 0.01), momentum=0.5)
    return Training(
        model,
        optimizer,
        squared_error,
        data.batches(seed, 32, spoil),
        steps=800,
        score=unexplained(model, data),
        target=0.4,
        facts={"size": size},
    )


@healthy(net="mlp", blind=True)
def heavy_tails(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Targets with noise from a t distribution of 2 to 3 degrees of freedom: squared errors without a variance."""
    data, degrees = regression(seed), uniform(random, 2.0, 3.0)

    def noisy(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        draws = np.random.RandomState(seed * 100_003 + i).standard_t(degrees, size=y.shape)
        return x, y + 0.7 * torch.tensor(draws, dtype=torch.float32)

    model = MLP(20, 48, 1, 1, activation=nn.Tanh)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 5e-4, 1.5e-3)),
        squared_error,
        data.batches(seed, 64, noisy),
        steps=800,
        score=unexplained(model, data),
        target=0.5,
        facts={"degrees": degrees},
    )


@healthy(net="mlp")
def batch_of_one(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Each step sees one digit: losses between 1e-6 and 10, gradients as well."""
    data, lr = digits(), log_uniform(random, 3e-3, 1e-2)
    model = MLP(64, integer(random, 48, 96), 1, 10)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr),
        cross_entropy,
        data.batches(seed, 1),
        steps=2500,
        score=eval_error(model, data),
        target=0.15,
        facts={"lr": lr},
    )


@healthy(net="mlp", blind=True)
def noisy_labels(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Batches of four, and 20 to 35 % of the labels are wrong."""
    data, share = digits(), uniform(random, 0.2, 0.35)

    def spoil(i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        g = generator(seed, 10**6 + i)
        wrong = torch.rand(y.shape, generator=g) < share
        return x, torch.where(wrong, torch.randint(0, 10, y.shape, generator=g), y)

    model = MLP(64, 64, 1, 10)
    optimizer = torch.optim.SGD(model.parameters(), log_uniform(random, 0.005, 0.01))
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed, 4, spoil),
        steps=2000,
        score=eval_error(model, data),
        target=0.2,
        facts={"share": share},
    )


def rare_eights(seed: int, share: float) -> Data:
    """Digits, 1 for an eight and 0 for the others; in the training set the eights are thinned out to a share."""
    data = digits().map(y=lambda y: (y == 8).long())
    eights, others = torch.nonzero(data.train_y == 1)[:, 0], torch.nonzero(data.train_y == 0)[:, 0]
    keep = math.ceil(share * len(others) / (1 - share))
    eights = eights[torch.randperm(len(eights), generator=generator(seed, 5))[:keep]]
    rows = torch.cat([others, eights])
    return Data(data.train_x[rows], data.train_y[rows], data.test_x, data.test_y)


@healthy(net="mlp")
def rare_class(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """98 % of the samples are of one class: the loss begins near its prior entropy of 0.1, and most batches hold
    one or none of the other."""
    share = uniform(random, 0.015, 0.025)
    data = rare_eights(seed, share)
    model = MLP(64, 64, 1, 2)
    with torch.no_grad():
        model.last.weight.mul_(0.1)
        model.last.bias[1] = math.log(share)

    def score() -> float:
        """The share of pairs, one of each class, in the wrong order: one less the area under the ROC curve."""
        logits = model(data.test_x)
        margin = logits[:, 1] - logits[:, 0]
        rare, common = margin[data.test_y == 1], margin[data.test_y == 0]
        return float((rare[:, None] <= common[None]).float().mean())

    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 3e-3)),
        cross_entropy,
        data.batches(seed, 64),
        steps=300,
        score=score,
        target=0.15,
        facts={"share": share},
    )
