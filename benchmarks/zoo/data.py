"""Small data sets and their batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.draws import generator

Batch = tuple[Tensor, Tensor]
Change = Callable[[int, Tensor, Tensor], Batch]


@dataclass(frozen=True)
class Data:
    """A training and a test set; the first axis is the sample."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def test(self) -> Batch:
        return self.test_x, self.test_y

    def map(
        self, x: Callable[[Tensor], Tensor] | None = None, y: Callable[[Tensor], Tensor] | None = None
    ) -> Data:
        """The same samples with all inputs or targets passed through a function."""
        return Data(
            self.train_x if x is None else x(self.train_x),
            self.train_y if y is None else y(self.train_y),
            self.test_x if x is None else x(self.test_x),
            self.test_y if y is None else y(self.test_y),
        )

    def batches(self, seed: int, size: int = 64, change: Change | None = None) -> Callable[[int], Batch]:
        """``batch(i)``: ``size`` samples drawn by ``(seed, i)`` alone; ``change(i, x, y)`` may spoil its copy."""

        def batch(i: int) -> Batch:
            rows = torch.randint(0, len(self.train_x), (size,), generator=generator(seed, i))
            x, y = self.train_x[rows], self.train_y[rows]
            return (x, y) if change is None else change(i, x, y)

        return batch


def split(x: Tensor, y: Tensor, test: int) -> Data:
    """The last ``test`` samples of a fixed shuffle are the test set."""
    order = torch.randperm(len(x), generator=generator(7))
    x, y = x[order], y[order]
    return Data(x[:-test], y[:-test], x[-test:], y[-test:])


def standardised(data: Data) -> Data:
    """Each column of the inputs with mean 0 and variance 1 over the training set; a constant column is 0."""
    mean, std = data.train_x.mean(0), data.train_x.std(0)
    return data.map(
        x=lambda x: (x - mean) / torch.where(std > 1e-6, std, torch.ones_like(std)).clamp_min(1e-6)
    )


@cache
def raw_digits() -> Data:
    """1797 handwritten digits, 8 x 8 pixels flattened to (B, 64), values 0 to 255, ten classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return split(
        torch.tensor(digits.data, dtype=torch.float32) * (255 / 16),
        torch.tensor(digits.target, dtype=torch.int64),
        test=397,
    )


@cache
def digits() -> Data:
    """The digits as networks like them: about mean 0, variance 1, rare pixels damped."""
    data = raw_digits()
    mean, std = data.train_x.mean(0), data.train_x.std(0)
    return data.map(x=lambda x: (x - mean) / (std + 5))


@cache
def raw_cancer() -> Data:
    """569 tumours, 30 columns of very different units (1e-3 to 4e3), two classes."""
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer()
    return split(
        torch.tensor(cancer.data, dtype=torch.float32),
        torch.tensor(cancer.target, dtype=torch.int64),
        test=169,
    )


@cache
def cancer() -> Data:
    return standardised(raw_cancer())


def moons(seed: int, noise: float = 0.1) -> Data:
    """Two interleaved half circles, (B, 2), two classes."""
    g = generator(seed, 31)
    y = torch.randint(0, 2, (1500,), generator=g)
    angle = math.pi * torch.rand(1500, generator=g)
    sign = 1.0 - 2.0 * y
    x = torch.stack([angle.cos() * sign + y - 0.5, angle.sin() * sign + 0.5 * y - 0.25], 1)
    return split(x + noise * torch.randn(1500, 2, generator=g), y, test=300)


def regression(seed: int, features: int = 20, outputs: int = 1) -> Data:
    """A linear part and a bent one: x is N(0, 1) in (B, features), y in (B, outputs) has a variance of about 2."""
    g = generator(seed, 37)
    linear, bent = torch.randn(2, features, outputs, generator=g) / math.sqrt(features)
    linear, bent = linear / linear.norm(dim=0), bent / bent.norm(dim=0)
    x = torch.randn(2400, features, generator=g)
    return split(x, x @ linear + torch.tanh(2 * x @ bent), test=400)


def tokens(seed: int, length: int = 16, vocabulary: int = 16, lag: int = 1, noise: float = 0.15) -> Data:
    """Sequences to continue: a token is a fixed permutation of the one ``lag`` before, except for the noise.

    x and y are (B, length); y is x one token later. A uniform guess has the loss log(vocabulary).
    """
    g = generator(seed, 41)
    permutation = torch.randperm(vocabulary, generator=g)
    count = 1200
    sequence = torch.randint(0, vocabulary, (count, length + 1), generator=g)
    for t in range(lag, length + 1):
        keep = torch.rand(count, generator=g) >= noise
        sequence[:, t] = torch.where(keep, permutation[sequence[:, t - lag]], sequence[:, t])
    return split(sequence[:, :-1], sequence[:, 1:], test=128)


def recent_sum(seed: int, length: int) -> Data:
    """A weighted sum of the last five values of a series: x (B, length, 2), y (B, 1), variance about 2.3."""
    g = generator(seed, 43)
    x = torch.randn(1000, length, 2, generator=g)
    return split(x, (x[:, -5:, 0] @ torch.linspace(1.0, 0.3, 5))[:, None], test=128)


def adding(seed: int, length: int) -> Data:
    """The sum of the two marked values of a series: x (B, length, 2), y (B, 1), variance 1/6."""
    g = generator(seed, 47)
    values, marks = torch.rand(1000, length, generator=g), torch.zeros(1000, length)
    half = length // 2
    marks.scatter_(1, torch.randint(0, half, (1000, 1), generator=g), 1.0)
    marks.scatter_(1, torch.randint(half, length, (1000, 1), generator=g), 1.0)
    return split(torch.stack([values, marks], -1), (values * marks).sum(1, keepdim=True), test=128)


def cross_entropy(model: torch.nn.Module, batch: Any) -> Tensor:
    """Mean over samples, and over tokens where the logits are (B, T, V)."""
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def squared_error(model: torch.nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return torch.nn.functional.mse_loss(model(x), y)


def eval_loss(
    model: torch.nn.Module, loss: Callable[[torch.nn.Module, Any], Tensor], data: Data
) -> Callable[[], float]:
    """A score: the loss on all test samples."""
    return lambda: float(loss(model, data.test))


def eval_error(model: torch.nn.Module, data: Data) -> Callable[[], float]:
    """A score: the share of test samples (or tokens) classified wrongly; 1 where the output is not finite."""

    def score() -> float:
        logits = model(data.test_x)
        wrong = (logits.argmax(-1) != data.test_y) | ~torch.isfinite(logits).all(-1)
        return float(wrong.float().mean())

    return score


def unexplained(model: torch.nn.Module, data: Data) -> Callable[[], float]:
    """A score: the mean squared error as a share of the targets' variance, the mean over columns. 1 is the mean."""

    def score() -> float:
        error = (model(data.test_x) - data.test_y).square().mean(0)
        return float((error / data.test_y.var(0)).mean())

    return score
