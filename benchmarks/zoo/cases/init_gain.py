"""Weights that start too large."""

from __future__ import annotations

import torch
from numpy.random import RandomState
from torch import nn
from torch.optim import SGD, Adam

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


@failing("init_gain_large", net="mlp")
def tanh_mlp_large_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 24, 34), uniform(random, 2.8, 4.5)
    model = MLP(64, 48, depth, 10, nn.Tanh, gain=1.0 if fixed else gain, orthogonal=True)
    optimizer = SGD(model.parameters(), lr=0.05)
    return classification(model, optimizer, digits(), seed, steps=200, facts={"depth": depth, "gain": gain})


@failing("init_gain_large", net="mlp")
def relu_mlp_large_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 10, 18), uniform(random, 2.4, 3.5)
    model = MLP(64, 64, depth, 10, gain=None if fixed else gain)
    optimizer = SGD(model.parameters(), lr=0.02)
    return classification(
        model, optimizer, digits(), seed, steps=300, target=1.0, facts={"depth": depth, "gain": gain}
    )


@failing("init_gain_large", net="mlp", blind=True)
def one_layer_too_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 4, 8), log_uniform(random, 30, 300)
    layer = integer(random, 0, depth - 1)
    model = MLP(64, 64, depth, 10)
    if not fixed:
        with torch.no_grad():
            model.blocks[layer].linear.weight.mul_(scale)
    optimizer = SGD(model.parameters(), lr=0.05)
    facts = {"depth": depth, "scale": scale}
    return classification(model, optimizer, digits(), seed, where=f"blocks.{layer}.linear", facts=facts)


@failing("init_gain_large", net="cnn")
def cnn_large_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 6, 10), uniform(random, 3.0, 5.0)
    model = CNN(8, depth, gain=None if fixed else gain)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    return classification(
        model, optimizer, digits(), seed, steps=200, size=32, facts={"depth": depth, "gain": gain}
    )


@failing("init_gain_large", net="mlp", blind=True)
def adam_mlp_large_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 10, 16), uniform(random, 2.7, 3.5)
    model = MLP(64, 64, depth, 10, gain=None if fixed else gain)
    optimizer = Adam(model.parameters(), lr=1e-3)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "gain": gain})


@failing("output_scale", "init_gain_large", net="mlp")
def classifier_output_too_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 2, 4), log_uniform(random, 100, 1000)
    model = MLP(64, 64, depth, 10)
    if not fixed:
        with torch.no_grad():
            model.last.weight.mul_(scale)
    optimizer = SGD(model.parameters(), lr=0.1)
    return classification(
        model, optimizer, digits(), seed, where="last", facts={"depth": depth, "scale": scale}
    )


@failing("output_scale", "init_gain_large", net="mlp", blind=True)
def regression_output_too_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 1, 3), log_uniform(random, 30, 300)
    model = MLP(20, 48, depth, 1, nn.Tanh)
    if not fixed:
        with torch.no_grad():
            model.last.weight.mul_(scale)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.5)
    return regressing(
        model, optimizer, regression(seed), seed, where="last", facts={"depth": depth, "scale": scale}
    )
