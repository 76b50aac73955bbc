"""Learning rates and momenta that are too large or too small."""

from __future__ import annotations

from numpy.random import RandomState
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    CNN,
    MLP,
    cancer,
    classification,
    digits,
    integer,
    log_uniform,
    moons,
    regressing,
    regression,
    uniform,
)
from benchmarks.zoo.training import Training


@failing("lr_too_large", net="mlp")
def sgd_lr_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 4), log_uniform(random, 4, 30)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=0.1 if fixed else lr)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "lr": lr})


@failing("lr_too_large", net="mlp", blind=True)
def adam_lr_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 3, 6), log_uniform(random, 0.15, 0.8)
    model = MLP(64, 64, depth, 10)
    optimizer = Adam(model.parameters(), lr=1e-3 if fixed else lr)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "lr": lr})


@failing("lr_too_large", net="mlp")
def adamw_lr_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 4, 8), log_uniform(random, 0.1, 1.0)
    model = MLP(64, 64, depth, 10, nn.GELU)
    optimizer = AdamW(model.parameters(), lr=1e-3 if fixed else lr, weight_decay=0.01)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "lr": lr})


@failing("lr_too_large", net="mlp")
def rmsprop_lr_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 5), log_uniform(random, 0.2, 1.0)
    model = MLP(64, 64, depth, 10)
    optimizer = RMSprop(model.parameters(), lr=1e-3 if fixed else lr)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "lr": lr})


@failing("lr_too_large", net="cnn", blind=True)
def cnn_momentum_lr_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 4), log_uniform(random, 1, 6)
    model = CNN(8, depth)
    optimizer = SGD(model.parameters(), lr=0.02 if fixed else lr, momentum=0.9)
    return classification(
        model, optimizer, digits(), seed, steps=200, size=32, facts={"depth": depth, "lr": lr}
    )


@failing("lr_too_large", net="mlp")
def regression_lr_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 1, 3), log_uniform(random, 1, 5)
    model = MLP(20, 64, depth, 1)
    optimizer = SGD(model.parameters(), lr=0.02 if fixed else lr)
    return regressing(model, optimizer, regression(seed), seed, facts={"depth": depth, "lr": lr})


@failing("lr_too_large", net="mlp", blind=True)
def schedule_jump(random: RandomState, seed: int, fixed: bool) -> Training:
    """The schedule multiplies the rate at one step and leaves it there."""
    depth, at, factor = integer(random, 2, 4), integer(random, 80, 160), log_uniform(random, 80, 400)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = None if fixed else LambdaLR(optimizer, lambda i: factor if i >= at else 1.0)
    facts = {"depth": depth, "factor": factor}
    return classification(model, optimizer, digits(), seed, scheduler=scheduler, at=at, facts=facts)


@failing("lr_too_large", net="mlp")
def one_cycle_peak_large(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, peak = integer(random, 3, 6), log_uniform(random, 8, 40)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = OneCycleLR(
        optimizer, max_lr=0.2 if fixed else peak, total_steps=251, pct_start=0.3, cycle_momentum=False
    )
    facts = {"depth": depth, "peak": peak}
    return classification(model, optimizer, digits(), seed, scheduler=scheduler, facts=facts)


@failing("lr_too_small", net="mlp")
def sgd_lr_small(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 2, 4), log_uniform(random, 1e-8, 1e-6)
    model = MLP(64, 64, depth, 10)
    optimizer = SGD(model.parameters(), lr=0.1 if fixed else lr)
    return classification(model, optimizer, digits(), seed, facts={"depth": depth, "lr": lr})


@failing("lr_too_small", net="mlp", blind=True)
def adam_lr_small(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, lr = integer(random, 1, 3), log_uniform(random, 1e-9, 1e-7)
    model = MLP(30, 32, depth, 2, nn.Tanh)
    optimizer = Adam(model.parameters(), lr=5e-3 if fixed else lr)
    return classification(
        model, optimizer, cancer(), seed, target=0.4, steps=150, facts={"depth": depth, "lr": lr}
    )


@failing("momentum_too_large", "lr_too_large", net="mlp")
def regression_momentum_large(random: RandomState, seed: int, fixed: bool) -> Training:
    lr, momentum = uniform(random, 0.05, 0.1), uniform(random, 0.985, 0.995)
    model = MLP(20, 64, 2, 1)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.0 if fixed else momentum)
    return regressing(model, optimizer, regression(seed), seed, facts={"lr": lr, "momentum": momentum})


@failing("momentum_too_large", "lr_too_large", net="mlp", blind=True)
def classifier_momentum_large(random: RandomState, seed: int, fixed: bool) -> Training:
    lr, momentum = uniform(random, 0.15, 0.25), uniform(random, 0.985, 0.993)
    model = MLP(64, 64, 5, 10)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.0 if fixed else momentum)
    return classification(model, optimizer, digits(), seed, steps=300, facts={"lr": lr, "momentum": momentum})


@failing("momentum_too_large", "lr_too_large", net="mlp")
def moons_momentum_large(random: RandomState, seed: int, fixed: bool) -> Training:
    lr, momentum = uniform(random, 0.5, 0.8), uniform(random, 0.985, 0.995)
    model = MLP(2, 32, 4, 2)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.0 if fixed else momentum)
    return classification(
        model, optimizer, moons(seed), seed, target=0.4, facts={"lr": lr, "momentum": momentum}
    )
