"""Weights that start too small, or all alike."""

from __future__ import annotations

from numpy.random import RandomState
from torch import nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import CNN, MLP, classification, digits, integer, uniform
from benchmarks.zoo.training import Training


@failing("init_gain_small", "vanishing", net="mlp")
def tanh_mlp_small_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 16, 30), uniform(random, 0.3, 0.6)
    model = MLP(64, 48, depth, 10, nn.Tanh, gain=1.0 if fixed else gain, orthogonal=True)
    optimizer = SGD(model.parameters(), lr=0.05)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "gain": gain})


@failing("init_gain_small", "vanishing", net="mlp", blind=True)
def relu_mlp_small_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 12, 20), uniform(random, 0.3, 0.7)
    model = MLP(64, 64, depth, 10, gain=None if fixed else gain)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.5)
    return classification(
        model, optimizer, digits(), seed, steps=300, target=1.0, facts={"depth": depth, "gain": gain}
    )


@failing("init_gain_small", "vanishing", net="cnn")
def cnn_small_gain(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 8, 12), uniform(random, 0.2, 0.5)
    model = CNN(8, depth, gain=None if fixed else gain)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    return classification(
        model, optimizer, digits(), seed, steps=200, size=32, facts={"depth": depth, "gain": gain}
    )


@failing("vanishing", "saturation", "init_gain_small", net="mlp")
def deep_sigmoid_stack(random: RandomState, seed: int, fixed: bool) -> Training:
    """The twin has tanh where this has sigmoid, with torch's own start in both."""
    depth = integer(random, 8, 14)
    activation = nn.Tanh if fixed else nn.Sigmoid
    layers: list[nn.Module] = [nn.Linear(64, 64), activation()]
    for _ in range(depth):
        layers += [nn.Linear(64, 64), activation()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.5)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth})


@failing("vanishing", "init_gain_small", net="mlp", blind=True)
def deep_default_start(random: RandomState, seed: int, fixed: bool) -> Training:
    """nn.Linear's own start (gain 1/sqrt(3)) in a ReLU net so deep that nothing comes through."""
    depth = integer(random, 14, 20)
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    if fixed:
        for layer in model[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.5)
    return classification(model, optimizer, digits(), seed, steps=300, target=1.0, facts={"depth": depth})


@failing("init_gain_small", "vanishing", net="mlp", blind=True)
def zero_weights(random: RandomState, seed: int, fixed: bool) -> Training:
    depth = integer(random, 1, 4)
    model = MLP(64, 48, depth, 10)
    if not fixed:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    optimizer = Adam(model.parameters(), lr=2e-3)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth})


@failing("init_gain_small", "init_gain_large", net="mlp")
def constant_weights(random: RandomState, seed: int, fixed: bool) -> Training:
    """Every weight of a layer has the same value: all units of a layer stay copies of one."""
    depth, value = integer(random, 2, 4), uniform(random, 0.002, 0.02)
    model = MLP(64, 48, depth, 10)
    if not fixed:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.weight, value)
    optimizer = SGD(model.parameters(), lr=0.1)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "value": value})
