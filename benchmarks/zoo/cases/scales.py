"""Inputs and targets in units that do not fit the network."""

from __future__ import annotations

import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.data import Data
from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    CNN,
    MLP,
    cancer,
    classification,
    digits,
    integer,
    log_uniform,
    raw_cancer,
    raw_digits,
    regressing,
    regression,
)
from benchmarks.zoo.training import Training


def one_column(data: Data, column: int, scale: float) -> Data:
    """The data with one input column in another unit."""

    def spoil(x: Tensor) -> Tensor:
        factor = torch.ones(x.shape[1])
        factor[column] = scale
        return x * factor

    return data.map(x=spoil)


@failing("unscaled_inputs", net="mlp")
def regression_inputs_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 1, 3), log_uniform(random, 30, 1000)
    data = regression(seed) if fixed else regression(seed).map(x=lambda x: x * scale)
    model = MLP(20, 64, depth, 1)
    optimizer = SGD(model.parameters(), lr=0.02)
    return regressing(model, optimizer, data, seed, facts={"depth": depth, "scale": scale})


@failing("unscaled_inputs", net="mlp", blind=True)
def raw_pixels_sgd(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 4), log_uniform(random, 0.03, 0.08)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.5)
    data = digits() if fixed else raw_digits()
    return classification(model, optimizer, data, seed, facts={"depth": depth, "lr": lr})


@failing("unscaled_inputs", "saturation", net="mlp")
def inputs_far_from_zero_adam(random: RandomState, seed: int, fixed: bool) -> Training:
    """Inputs with a mean hundreds of their deviations away, as years or heights above the sea are."""
    depth, offset = integer(random, 1, 3), log_uniform(random, 300, 3000)
    data = regression(seed) if fixed else regression(seed).map(x=lambda x: x + offset)
    model = MLP(20, 48, depth, 1, nn.Tanh)
    optimizer = Adam(model.parameters(), lr=3e-3)
    return regressing(model, optimizer, data, seed, facts={"depth": depth, "offset": offset})


@failing("unscaled_inputs", net="cnn")
def raw_pixels_cnn_momentum(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 4), log_uniform(random, 0.01, 0.03)
    model = CNN(8, depth)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9)
    data = digits() if fixed else raw_digits()
    return classification(model, optimizer, data, seed, size=32, steps=200, facts={"depth": depth, "lr": lr})


@failing("unscaled_inputs", net="mlp")
def table_in_raw_units(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 1, 3), log_uniform(random, 0.01, 0.05)
    model = MLP(30, 32, depth, 2)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9)
    data = cancer() if fixed else raw_cancer()
    return classification(model, optimizer, data, seed, size=32, target=0.4, facts={"depth": depth, "lr": lr})


@failing("unscaled_inputs", net="mlp", blind=True)
def one_column_large_mlp(random: RandomState, seed: int, fixed: bool) -> Training:
    column, scale = integer(random, 0, 19), log_uniform(random, 3e3, 3e4)
    data = regression(seed) if fixed else one_column(regression(seed), column, scale)
    model = MLP(20, 48, 2, 1, nn.Tanh)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    return regressing(model, optimizer, data, seed, facts={"column": column, "scale": scale})


@failing("unscaled_inputs", net="cnn")
def one_pixel_large_cnn(random: RandomState, seed: int, fixed: bool) -> Training:
    """One hot pixel of the sensor, 1e4 times the others."""
    column, scale = 8 * integer(random, 2, 5) + integer(random, 2, 5), log_uniform(random, 3e3, 3e4)
    data = digits() if fixed else one_column(digits(), column, scale)
    model = CNN(8, 2)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    return classification(
        model, optimizer, data, seed, size=32, steps=200, facts={"column": column, "scale": scale}
    )


@failing("unscaled_targets", net="mlp")
def targets_large_sgd(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 1, 3), log_uniform(random, 1e2, 1e4)
    data = regression(seed) if fixed else regression(seed).map(y=lambda y: y * scale)
    model = MLP(20, 64, depth, 1)
    optimizer = SGD(model.parameters(), lr=0.02)
    return regressing(model, optimizer, data, seed, facts={"depth": depth, "scale": scale})


@failing("unscaled_targets", "lr_too_small", net="mlp", blind=True)
def targets_far_from_zero_adam(random: RandomState, seed: int, fixed: bool) -> Training:
    """Targets with a mean hundreds of their deviations away: the run never gets there."""
    depth, offset = integer(random, 1, 3), log_uniform(random, 1e3, 1e5)
    data = regression(seed) if fixed else regression(seed).map(y=lambda y: y + offset)
    model = MLP(20, 64, depth, 1, nn.Tanh)
    optimizer = Adam(model.parameters(), lr=5e-3)
    return regressing(model, optimizer, data, seed, facts={"depth": depth, "offset": offset})


@failing("unscaled_targets", net="mlp")
def target_columns_in_different_units(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 1, 2), log_uniform(random, 300, 3000)
    units = torch.tensor([1.0, scale, 1.0 / scale])
    data = regression(seed, outputs=3)
    model = MLP(20, 64, depth, 3)
    optimizer = SGD(model.parameters(), lr=0.05)
    data = data if fixed else data.map(y=lambda y: y * units)
    return regressing(model, optimizer, data, seed, facts={"depth": depth, "scale": scale})
