"""One batch that is not like the others."""

from __future__ import annotations

import math

from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.data import Batch
from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    CNN,
    MLP,
    classification,
    digits,
    integer,
    log_uniform,
    regressing,
    regression,
    uniform,
)
from benchmarks.zoo.training import Training


@failing("bad_batch", net="mlp", visible=False)
def nan_pixel(random: RandomState, seed: int, fixed: bool) -> Training:
    at, row, column = integer(random, 60, 160), integer(random, 0, 63), integer(random, 0, 63)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        if i == at and not fixed:
            x[row, column] = math.nan
        return x, y

    model = MLP(64, 64, 3, 10)
    optimizer = Adam(model.parameters(), lr=1e-3)
    return classification(model, optimizer, digits(), seed, steps=200, change=change, at=at)


@failing("bad_batch", net="mlp", visible=False, blind=True)
def infinite_target(random: RandomState, seed: int, fixed: bool) -> Training:
    """A target that was divided by zero upstream."""
    at, row = integer(random, 60, 160), integer(random, 0, 63)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        if i == at and not fixed:
            y[row] = math.inf
        return x, y

    model = MLP(20, 48, 2, 1, nn.Tanh)
    optimizer = Adam(model.parameters(), lr=3e-3)
    return regressing(model, optimizer, regression(seed), seed, change=change, at=at)


@failing("bad_batch", net="mlp", visible=False)
def input_outlier(random: RandomState, seed: int, fixed: bool) -> Training:
    at, rows, scale = integer(random, 60, 160), integer(random, 2, 8), log_uniform(random, 1e3, 1e5)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        if i == at and not fixed:
            x[:rows] *= scale
        return x, y

    model = MLP(20, 64, 2, 1)
    optimizer = SGD(model.parameters(), lr=0.02)
    facts = {"rows": rows, "scale": scale}
    return regressing(model, optimizer, regression(seed), seed, change=change, at=at, facts=facts)


@failing("bad_batch", net="mlp", visible=False, blind=True)
def target_outlier(random: RandomState, seed: int, fixed: bool) -> Training:
    at, rows, scale = integer(random, 100, 180), integer(random, 2, 6), log_uniform(random, 1e3, 1e5)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        if i == at and not fixed:
            y[:rows] *= scale
        return x, y

    model = MLP(20, 64, 2, 1, nn.Tanh)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.5)
    facts = {"rows": rows, "scale": scale}
    return regressing(model, optimizer, regression(seed), seed, change=change, at=at, facts=facts)


@failing("bad_batch", net="cnn", visible=False)
def raw_pixels_in_one_batch(random: RandomState, seed: int, fixed: bool) -> Training:
    """One batch that skipped the preprocessing, in a run with momentum."""
    at, offset, scale = integer(random, 40, 120), uniform(random, 5, 20), log_uniform(random, 300, 3000)

    def change(i: int, x: Tensor, y: Tensor) -> Batch:
        return (x * scale + offset, y) if i == at and not fixed else (x, y)

    model = CNN(8, 3)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    facts = {"offset": offset, "scale": scale}
    return classification(
        model, optimizer, digits(), seed, steps=180, size=32, change=change, at=at, facts=facts
    )
