"""Healthy: losses that are negative, signed, without a floor, or that grow by design."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    MLP,
    Batch,
    digits,
    generator,
    integer,
    log_uniform,
    moons,
    regression,
    uniform,
)
from benchmarks.zoo.training import Training


@healthy(net="mlp")
def gaussian_likelihood(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Mean and variance are learned; the noise is small, so the loss passes through 0 and ends far below."""
    noise = log_uniform(random, 0.01, 0.05)
    data = regression(seed, features=6)
    data = data.map(y=lambda y: y / y.std() * 0.3)
    model = MLP(6, 64, 1, 2, activation=nn.Tanh)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        mean, log_var = model(batch[0]).chunk(2, -1)
        return 0.5 * (log_var + (batch[1] - mean).square() * torch.exp(-log_var)).mean()

    def noisy(i: int, x: Tensor, y: Tensor) -> Batch:
        return x, y + noise * torch.randn(y.shape, generator=generator(seed, 10**6 + i))

    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 3e-3)),
        loss,
        data.batches(seed, 64, noisy),
        steps=500,
        score=lambda: float(loss(model, data.test)),
        target=-1.2,  # a constant mean and variance: -0.7
        facts={"noise": noise},
    )


class Coupling(nn.Module):
    """One half of (B, 2) is scaled and moved by what a net makes of the other half."""

    def __init__(self, first: bool, width: int) -> None:
        super().__init__()
        self.first = first
        self.net = MLP(1, width, 0, 2, activation=nn.Tanh)
        nn.init.zeros_(self.net.last.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, -1) if self.first else x.flip(-1).chunk(2, -1)
        log_scale, shift = self.net(kept).chunk(2, -1)
        log_scale = 2 * torch.tanh(log_scale / 2)
        moved = moved * log_scale.exp() + shift
        return torch.cat([kept, moved] if self.first else [moved, kept], -1), log_scale[:, 0]


class Flow(nn.Module):
    """(B, 2) to log-likelihoods (B,)."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 0, width) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return total - 0.5 * x.square().sum(1) - math.log(2 * math.pi)


@healthy(net="flow", blind=True)
def coupling_flow(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A normalising flow on a small shape: the mean negative log-likelihood goes below 0."""
    size = uniform(random, 0.2, 0.4)
    data = moons(seed, noise=0.05).map(x=lambda x: size * x)
    model = Flow(4, 32)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return -model(batch[0]).mean()

    # what one Gaussian of the same mean and covariance would have
    gauss = float(0.5 * torch.logdet(torch.cov(data.train_x.T)) + 1 + math.log(2 * math.pi))
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 7e-3, 1.2e-2)),
        loss,
        data.batches(seed),
        steps=350,
        score=lambda: float(loss(model, data.test)),
        target=gauss - 0.1,
        facts={"size": size, "gauss": gauss},
    )


class VAE(nn.Module):
    """(B, 64) to a reconstruction, mean and log variance of the code; the noise is given."""

    def __init__(self, code: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, width), nn.ReLU(), nn.Linear(width, 64))
        self.code = code

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, -1)
        return self.decoder(mean + torch.exp(0.5 * log_var) * noise), mean, log_var


@healthy(net="vae")
def annealed_vae(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The weight of the KL term rises from 0: the loss grows by design from a third of the run on."""
    data, code = digits(), integer(random, 4, 8)
    steps, beta = 400, uniform(random, 2.0, 4.0)
    model = VAE(code, 96)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, float]) -> Tensor:
        x, noise, weight = batch
        rebuilt, mean, log_var = model(x, noise)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return ((rebuilt - x).square().sum(1) + weight * divergence).mean()

    draw = data.batches(seed)

    def batch(i: int) -> tuple[Tensor, Tensor, float]:
        x = draw(i)[0]
        noise = torch.randn(len(x), code, generator=generator(seed, 10**6 + i))
        return x, noise, beta * min(1.0, max(0.0, (i - steps / 4) / (steps / 2)))

    final = (data.test_x, torch.randn(len(data.test_x), code, generator=generator(seed, 3)), beta)
    collapsed = float((data.test_x - data.train_x.mean(0)).square().sum(1).mean())
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 2e-3, 4e-3)),
        loss,
        batch,
        steps=steps,
        score=lambda: float(loss(model, final)) / collapsed,  # 1: the code says nothing
        target=0.95,
        facts={"beta": beta, "code": code},
    )


@healthy(net="mlp", blind=True)
def contrastive(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Two noisy views of a digit find each other among all: cosines divided by a temperature of 0.07 to 0.15."""
    data, temperature = digits(), uniform(random, 0.07, 0.15)
    model = MLP(64, 96, 1, 32)
    draw = data.batches(seed)

    def views(x: Tensor, g: torch.Generator) -> Batch:
        one, two = (x + 0.5 * torch.randn(x.shape, generator=g) for _ in range(2))
        return one, two

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        one, two = (F.normalize(model(x), dim=-1) for x in batch)
        return one @ two.T / temperature

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        similar = logits(model, batch)
        return F.cross_entropy(similar, torch.arange(len(similar)))

    test = views(data.test_x, generator(seed, 3))
    own = torch.arange(len(data.test_x))
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 3e-3)),
        loss,
        lambda i: views(draw(i)[0], generator(seed, 10**6 + i)),
        steps=300,
        score=lambda: float((logits(model, test).argmax(1) != own).float().mean()),
        target=0.5,
        facts={"temperature": temperature},
    )
