"""Units that are dead or saturated."""

from __future__ import annotations

import torch
from numpy.random import RandomState
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    Appended,
    classification,
    digits,
    integer,
    log_uniform,
    regressing,
    regression,
    uniform,
)
from benchmarks.zoo.training import Training


@failing("dead_units", net="mlp")
def bias_far_negative(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, bias = integer(random, 3, 5), uniform(random, 15, 40)
    layer = integer(random, 0, depth - 1)
    model = MLP(64, 64, depth, 10)
    if not fixed:
        nn.init.constant_(model.blocks[layer].linear.bias, -bias)
    optimizer = SGD(model.parameters(), lr=0.05)
    facts = {"depth": depth, "bias": -bias}
    return classification(model, optimizer, digits(), seed, where=f"blocks.{layer}.linear", facts=facts)


@failing("dead_units", "lr_too_large", net="mlp", blind=True)
def killed_by_one_step(random: RandomState, seed: int, fixed: bool) -> Training:
    """One step at a rate far too large pushes the output of a ReLU below zero for good; the rate is fine after."""
    at, factor, shift = integer(random, 20, 80), log_uniform(random, 800, 2500), uniform(random, 3, 5)
    model = Appended(MLP(20, 48, 1, 1), nn.ReLU())
    nn.init.constant_(model.net.last.bias, shift)
    data = regression(seed).map(y=lambda y: y + shift)
    optimizer = SGD(model.parameters(), lr=0.01)
    scheduler = LambdaLR(optimizer, lambda i: factor if i == at and not fixed else 1.0)
    facts = {"factor": factor, "shift": shift}
    return regressing(model, optimizer, data, seed, scheduler=scheduler, at=at, where="after", facts=facts)


@failing("dead_units", "saturation", net="mlp")
def relu_output_negative_targets(random: RandomState, seed: int, fixed: bool) -> Training:
    """A ReLU after the last layer of a regression whose targets are below zero."""
    depth, shift = integer(random, 1, 3), uniform(random, 3, 6)
    model = Appended(MLP(20, 48, depth, 1), nn.Identity() if fixed else nn.ReLU())
    data = regression(seed).map(y=lambda y: y - shift)
    optimizer = Adam(model.parameters(), lr=1e-2)
    return regressing(
        model, optimizer, data, seed, steps=300, where="after", facts={"depth": depth, "shift": -shift}
    )


@failing("saturation", "unscaled_targets", net="mlp", blind=True)
def sigmoid_output_large_targets(random: RandomState, seed: int, fixed: bool) -> Training:
    """A sigmoid after the last layer of a regression whose targets lie beyond 1."""
    depth, shift = integer(random, 1, 3), uniform(random, 4, 10)
    model = Appended(MLP(20, 48, depth, 1, nn.Tanh), nn.Identity() if fixed else nn.Sigmoid())
    data = regression(seed).map(y=lambda y: y + shift)
    optimizer = Adam(model.parameters(), lr=1e-2)
    return regressing(model, optimizer, data, seed, where="after", facts={"depth": depth, "shift": shift})


@failing("saturation", "init_gain_large", net="mlp")
def tanh_saturated_weights(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, scale = integer(random, 5, 8), log_uniform(random, 20, 100)
    model = MLP(64, 48, depth, 10, nn.Tanh)
    if not fixed:
        with torch.no_grad():
            for block in model.blocks:
                block.linear.weight.mul_(scale)
    optimizer = SGD(model.parameters(), lr=0.05)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "scale": scale})


@failing("saturation", net="mlp")
def sigmoid_saturated_bias(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, bias = integer(random, 1, 3), uniform(random, 20, 40)
    layer = integer(random, 0, depth - 1)
    model = MLP(64, 48, depth, 10, nn.Sigmoid)
    if not fixed:
        nn.init.constant_(model.blocks[layer].linear.bias, bias)
    optimizer = Adam(model.parameters(), lr=3e-3)
    facts = {"depth": depth, "bias": bias}
    return classification(model, optimizer, digits(), seed, where=f"blocks.{layer}.linear", facts=facts)
