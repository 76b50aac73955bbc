"""Densities by a net: VAE, flow, a Gaussian."""

from __future__ import annotations

import math

import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    digits,
    generator,
    integer,
    log_uniform,
    raw_digits,
    regression,
    uniform,
)
from benchmarks.zoo.training import Training


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        seen = self.decoder(mean + noise * torch.exp(0.5 * log_variance))
        divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1)
        return ((x - seen) ** 2).sum(1).mean() + divergence.mean()


@failing("unscaled_inputs", "unsafe_op", net="vae")
def vae_raw_pixels(random: RandomState, seed: int, fixed: bool) -> Training:
    """Pixels from 0 to 255 make a log-variance whose exponential overflows or swamps the loss."""
    scale = log_uniform(random, 1.0, 4.0)
    data = digits() if fixed else raw_digits().map(x=lambda x: scale * x)
    model = VAE()
    batches = data.batches(seed)

    def batch(i):
        x, _ = batches(i)
        return x, torch.randn(len(x), 8, generator=generator(seed + 71, i))

    spread = float(data.test_x.var(0).sum())  # the loss of the mean image

    def score():
        mean, _ = model.encoder(data.test_x).chunk(2, dim=-1)
        return float(((data.test_x - model.decoder(mean)) ** 2).sum(1).mean()) / spread

    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=2e-3),
        loss=lambda model, batch: model.loss(*batch),
        batch=batch,
        steps=200,
        score=score,
        target=0.8,
        where="encoder.2",
        facts={"scale": scale},
    )


class Coupling(nn.Module):
    """Half of the vector scales and shifts the other half; ``bounded`` keeps each log-scale within 1."""

    def __init__(self, width: int, bounded: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width // 2, 48), nn.ReLU(), nn.Linear(48, width))
        self.bounded = bounded

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, dim=-1)
        log_scale, shift = self.net(kept).chunk(2, dim=-1)
        if self.bounded:
            log_scale = torch.tanh(log_scale)
        return torch.cat([changed * torch.exp(log_scale) + shift, kept], -1), log_scale.sum(-1)


class Flow(nn.Module):
    def __init__(self, width: int, depth: int, bounded: bool) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(width, bounded) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Negative log-likelihood of each row."""
        volume = torch.zeros(len(x))
        for coupling in self.couplings:
            x, change = coupling(x)
            volume = volume + change
        return 0.5 * (x**2).sum(-1) + 0.5 * x.shape[-1] * math.log(2 * math.pi) - volume


@failing("unsafe_op", "unbounded_objective", net="flow", blind=True)
def flow_log_scale(random: RandomState, seed: int, fixed: bool) -> Training:
    """The exponential of a log-scale that nothing bounds, in each of many couplings."""
    depth, factor = integer(random, 10, 12), uniform(random, 2.8, 3.6)
    model = Flow(8, depth, bounded=fixed)
    for coupling in model.couplings:
        with torch.no_grad():
            coupling.net[2].weight[:4] *= factor

    mix = torch.randn(8, 8, generator=generator(seed, 73)) / math.sqrt(8)

    def batch(i):
        z = torch.randn(64, 8, generator=generator(seed + 79, i))
        return torch.tanh(2 * z @ mix) + 0.1 * z

    kept = batch(-1)
    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=1e-2),
        loss=lambda model, x: model(x).mean(),
        batch=batch,
        steps=250,
        score=lambda: float(model(kept).mean()),
        target=10.0,
        where="couplings.0",
        facts={"depth": depth, "factor": factor},
    )


@failing("unbounded_objective", "unsafe_op", net="mlp")
def variance_collapse(random: RandomState, seed: int, fixed: bool) -> Training:
    """A likelihood without a bound: some targets are met exactly, and their variance is driven to 0."""
    rate = uniform(random, 0.02, 0.04)
    data = regression(seed).map(y=lambda y: (y > 1.0) * y)  # two of three targets are 0
    model = MLP(20, 64, 2, 2)

    def loss(model, batch):
        x, y = batch
        mean, log_variance = model(x).chunk(2, dim=-1)
        if fixed:
            log_variance = 3 * torch.tanh(log_variance / 3)
        return (0.5 * log_variance + 0.5 * (y - mean) ** 2 * torch.exp(-log_variance)).mean()

    def score():
        mean, _ = model(data.test_x).chunk(2, dim=-1)
        return float(((mean - data.test_y) ** 2).mean() / data.test_y.var())

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate, momentum=0.9),
        loss=loss,
        batch=data.batches(seed),
        steps=300,
        score=score,
        target=0.4,
        where="loss",
        facts={"lr": rate},
    )
