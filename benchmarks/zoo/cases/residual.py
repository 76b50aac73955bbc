"""Residual branches that add up without a norm to hold them."""

from __future__ import annotations

from numpy.random import RandomState
from torch import nn
from torch.optim import SGD

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import CNN, MLP, classification, digits, integer, moons
from benchmarks.zoo.training import Training


@failing("residual_accumulation", "init_gain_large", net="resnet")
def residual_mlp_no_norm(random: RandomState, seed: int, fixed: bool) -> Training:
    depth = integer(random, 20, 32)
    model = MLP(64, 48, depth, 10, norm=nn.LayerNorm if fixed else None, residual=True)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    return classification(model, optimizer, digits(), seed, size=32, facts={"depth": depth})


@failing("residual_accumulation", "init_gain_large", net="resnet", blind=True)
def residual_cnn_no_norm(random: RandomState, seed: int, fixed: bool) -> Training:
    depth = integer(random, 14, 20)
    model = CNN(8, depth, norm=fixed, residual=True)
    optimizer = SGD(model.parameters(), lr=0.005, momentum=0.9)
    return classification(model, optimizer, digits(), seed, steps=120, size=32, facts={"depth": depth})


@failing("residual_accumulation", "init_gain_large", net="resnet")
def residual_moons_no_norm(random: RandomState, seed: int, fixed: bool) -> Training:
    depth = integer(random, 24, 32)
    model = MLP(2, 32, depth, 2, norm=nn.LayerNorm if fixed else None, residual=True)
    optimizer = SGD(model.parameters(), lr=0.004, momentum=0.9)
    return classification(
        model, optimizer, moons(seed), seed, steps=200, size=32, target=0.4, facts={"depth": depth}
    )
