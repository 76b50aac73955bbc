"""Numbers of few bits: loss scales, updates that round to nothing, eps and squares that half precision cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import MLP, cross_entropy, digits, integer, log_uniform, uniform
from benchmarks.zoo.training import Training


def in_parameters_dtype(model: nn.Module, batch) -> Tensor:
    """Cross-entropy in float32 of a model in whatever it is kept in."""
    x, y = batch
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(x.to(dtype)).float(), y)


def classify(model, optimizer, seed, steps=200, target=0.8, loss=in_parameters_dtype, **more) -> Training:
    data = digits()
    return Training(
        model=model,
        optimizer=optimizer,
        loss=loss,
        batch=data.batches(seed),
        steps=steps,
        score=lambda: float(in_parameters_dtype(model, data.test)),
        target=target,
        **more,
    )


def mixed(scale: float, backoff: float = 0.5, clip: float | None = None, unscale: bool = True):
    """A loop in float16 with a loss scale; ``unscale`` before gradients are clipped."""

    def loop(t: Training) -> Iterator[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff, growth_interval=10_000)
        for i in range(t.steps):
            t.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = t.loss(t.model, t.batch(i))
            scaler.scale(loss).backward()
            if clip is not None:
                if unscale:
                    scaler.unscale_(t.optimizer)
                nn.utils.clip_grad_norm_(t.model.parameters(), clip)
            scaler.step(t.optimizer)
            scaler.update()
            yield float(loss.detach())

    return loop


@failing("low_precision", net="mlp")
def loss_scale_tiny(random: RandomState, seed: int, fixed: bool) -> Training:
    """A loss scale that was forced down and never grows again: scaled gradients are 0 in float16."""
    exponent = integer(random, 20, 26)
    model = MLP(64, 64, integer(random, 3, 5), 10)
    loop = mixed(2.0**10 if fixed else 2.0**-exponent)
    optimizer = SGD(model.parameters(), lr=0.1)
    return classify(model, optimizer, seed, loss=cross_entropy, loop=loop, facts={"exponent": -exponent})


@failing("low_precision", "loop_mistake", net="mlp", blind=True)
def loss_scale_huge(random: RandomState, seed: int, fixed: bool) -> Training:
    """A loss scale that overflows at every step and backs off too slowly: no step is ever taken."""
    exponent = integer(random, 35, 60)
    model = MLP(64, 64, integer(random, 2, 4), 10)
    loop = mixed(2.0**exponent, backoff=0.5 if fixed else 0.98)
    optimizer = Adam(model.parameters(), lr=2e-3)
    return classify(model, optimizer, seed, loss=cross_entropy, loop=loop, facts={"exponent": exponent})


@failing("loop_mistake", "low_precision", net="mlp")
def clip_before_unscale(random: RandomState, seed: int, fixed: bool) -> Training:
    """Gradients are clipped while they are still multiplied by the loss scale: next to nothing is left of them."""
    exponent, rate = integer(random, 12, 15), uniform(random, 0.05, 0.15)
    model = MLP(64, 64, integer(random, 2, 4), 10)
    loop = mixed(2.0**exponent, clip=1.0, unscale=fixed)
    optimizer = SGD(model.parameters(), lr=rate)
    return classify(
        model, optimizer, seed, loss=cross_entropy, loop=loop, facts={"exponent": exponent, "lr": rate}
    )


@failing("low_precision", net="mlp")
def adam_in_half(random: RandomState, seed: int, fixed: bool) -> Training:
    """The whole model in float16, with Adam: the squares of small gradients and eps are 0 there, and 0 / 0 is not
    a number."""
    rate = log_uniform(random, 5e-4, 2e-3)
    model = MLP(64, 48, integer(random, 2, 3), 10)
    if not fixed:
        model.half()
    return classify(model, Adam(model.parameters(), lr=rate), seed, steps=150, facts={"lr": rate})


@failing("low_precision", "lr_too_small", net="mlp", blind=True)
def updates_round_to_nothing(random: RandomState, seed: int, fixed: bool) -> Training:
    """Weights in bfloat16, whose neighbours are further apart than an update."""
    rate = log_uniform(random, 1.2e-4, 2e-4)
    model = MLP(64, 128, 3, 10, norm=nn.LayerNorm)
    with torch.no_grad():
        for block in model.blocks:
            block.linear.weight *= 4  # a norm comes after it
    if not fixed:
        model.bfloat16()
    optimizer = Adam(model.parameters(), lr=rate)
    return classify(model, optimizer, seed, steps=250, target=1.4, facts={"lr": rate})


@failing("low_precision", "unsafe_op", net="mlp")
def log_of_half_probability(random: RandomState, seed: int, fixed: bool) -> Training:
    """log(p + 1e-8) of a probability in float16, where 1e-8 is 0."""
    rate = uniform(random, 0.2, 0.4)
    model = MLP(64, 64, integer(random, 2, 4), 10)

    def loss(model, batch):
        x, y = batch
        p = model(x).softmax(1).to(torch.float32 if fixed else torch.float16)
        return -torch.log(p + 1e-8).gather(1, y[:, None]).float().mean()

    optimizer = SGD(model.parameters(), lr=rate)
    return classify(model, optimizer, seed, loss=loss, where="loss", facts={"lr": rate})


class RootMeanSquare(nn.Module):
    """Divides by the root mean square of the last axis, taken in ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.dtype)
        return (y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-5)).float()


@failing("low_precision", net="mlp", blind=True)
def squares_overflow_in_half(random: RandomState, seed: int, fixed: bool) -> Training:
    """A norm written by hand that squares in float16: from 256 on a square is infinite, and the output 0."""
    scale, rate = log_uniform(random, 300, 1500), log_uniform(random, 1e-3, 3e-3)
    first = nn.Linear(64, 64)
    with torch.no_grad():
        first.weight *= scale
    norm = RootMeanSquare(torch.float32 if fixed else torch.float16)
    model = nn.Sequential(first, norm, nn.ReLU(), nn.Linear(64, 10))
    optimizer = Adam(model.parameters(), lr=rate)
    return classify(model, optimizer, seed, where="1", facts={"scale": scale, "lr": rate})
