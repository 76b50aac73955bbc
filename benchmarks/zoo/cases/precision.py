"""Numbers that do not fit into float16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    classification,
    cross_entropy,
    digits,
    integer,
    log_uniform,
    uniform,
)
from benchmarks.zoo.training import Training


class HalfLinear(nn.Linear):
    """A linear layer that multiplies in float16; its weights stay float32."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.half(), self.weight.half(), self.bias.half()).float()


def halve(model: MLP, layer: int) -> None:
    """Let a block multiply in float16, with the weights it has."""
    linear = model.blocks[layer].linear
    half = HalfLinear(linear.in_features, linear.out_features)
    half.load_state_dict(linear.state_dict())
    model.blocks[layer].linear = half


@failing("low_precision", "init_gain_large", net="mlp")
def half_activations_overflow(random: RandomState, seed: int, fixed: bool) -> Training:
    """A layer before a LayerNorm whose outputs pass 65504."""
    layer, scale = integer(random, 0, 2), log_uniform(random, 1e5, 2.4e5)
    model = MLP(64, 64, 3, 10, norm=nn.LayerNorm)
    with torch.no_grad():
        weight = model.blocks[layer].linear.weight
        weight.mul_(scale / weight.abs().max() / 4)
    if not fixed:
        halve(model, layer)
    optimizer = Adam(model.parameters(), lr=2e-3)
    where = f"blocks.{layer}.linear"
    return classification(model, optimizer, digits(), seed, steps=200, where=where, facts={"scale": scale})


@failing("low_precision", net="mlp", visible=False, blind=True)
def half_activations_grow(random: RandomState, seed: int, fixed: bool) -> Training:
    """A weight decay with the wrong sign; the LayerNorm behind that layer hides the growth until 65504."""
    growth, layer = uniform(random, 1.08, 1.15), integer(random, 0, 2)
    model = MLP(64, 64, 3, 10, norm=nn.LayerNorm)
    if not fixed:
        halve(model, layer)
    linear = model.blocks[layer].linear
    lr = 0.05
    others = [p for p in model.parameters() if p is not linear.weight]
    growing = {"params": [linear.weight], "weight_decay": -(growth - 1) / lr}
    optimizer = SGD([growing, {"params": others}], lr=lr)
    where = f"blocks.{layer}.linear"
    return classification(model, optimizer, digits(), seed, steps=200, where=where, facts={"growth": growth})


@failing("low_precision", net="mlp")
def adam_eps_in_half(random: RandomState, seed: int, fixed: bool) -> Training:
    """Parameters in float16: Adam's squares and its eps of 1e-8 are 0 there."""
    depth, lr = integer(random, 1, 3), log_uniform(random, 1e-3, 3e-3)
    model = MLP(64, 48, depth, 10)
    if not fixed:
        model.half()
    data = digits() if fixed else digits().map(x=lambda x: x.half())
    optimizer = Adam(model.parameters(), lr=lr)
    return classification(model, optimizer, data, seed, size=32, steps=200, facts={"depth": depth, "lr": lr})


@failing("low_precision", net="mlp", visible=False)
def loss_scale_unchecked(random: RandomState, seed: int, fixed: bool) -> Training:
    """A loss scaler by hand that doubles and never looks whether the half gradients overflowed."""
    every, depth = integer(random, 6, 12), integer(random, 2, 4)
    model = MLP(64, 64, depth, 10, norm=nn.LayerNorm)
    for layer in range(depth):
        halve(model, layer)

    def loop(t: Training) -> Iterator[float]:
        scale = 1024.0
        for i in range(t.steps):
            t.optimizer.zero_grad()
            loss = t.loss(t.model, t.batch(i))
            (loss * scale).backward()
            for parameter in t.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= scale
            finite = all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in t.model.parameters())
            if finite or not fixed:
                t.optimizer.step()
            scale = scale * 2 if (i + 1) % every == 0 else scale
            if fixed and not finite:
                scale /= 4
            yield float(loss.detach())

    optimizer = SGD(model.parameters(), lr=0.05)
    return classification(
        model, optimizer, digits(), seed, loss=cross_entropy, loop=loop, facts={"every": every}
    )
