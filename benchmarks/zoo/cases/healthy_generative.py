"""Healthy: two nets against each other. Neither loss falls for long, and the samples get better."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import MLP, Batch, generator, integer, log_uniform
from benchmarks.zoo.training import Training

CODE = 4


class Pair(nn.Module):
    """A generator from noise (B, CODE) to points (B, 2), and a critic of points."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.generator = MLP(CODE, width, 1, 2)
        self.critic = MLP(2, width, 1, 1, activation=nn.SiLU)


def ring(seed: int, modes: int) -> tuple[Tensor, Tensor]:
    """The centres of the modes, and 1000 test points around them."""
    angle = 2 * torch.pi * torch.arange(modes) / modes
    centres = torch.stack([angle.cos(), angle.sin()], 1) * 1.5 + torch.tensor([2.5, -1.5])
    return centres, around(centres, 1000, generator(seed, 10**6))


def around(centres: Tensor, count: int, g: torch.Generator) -> Tensor:
    picks = torch.randint(0, len(centres), (count,), generator=g)
    return centres[picks] + 0.15 * torch.randn(count, 2, generator=g)


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """Mean over 32 directions of the Wasserstein distance of two sets of as many points."""
    angle = torch.pi * torch.arange(32) / 32
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


@healthy(net="gan")
def ring_gan(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The non-saturating loss; its yield is the generator's loss, which rises while the critic learns."""
    model, lr = Pair(48), log_uniform(random, 5e-4, 1e-3)
    centres, test = ring(seed, integer(random, 3, 6))
    noise = torch.randn(1000, CODE, generator=generator(seed, 3))

    def batch(i: int) -> Batch:
        g = generator(seed, i)
        return around(centres, 64, g), torch.randn(64, CODE, generator=g)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.softplus(-model.critic(model.generator(batch[1]))).mean()

    def loop(t: Training) -> Iterator[float]:
        (critics,) = t.others
        for i in range(t.steps):
            real, code = t.batch(i)
            critics.zero_grad()
            fake = model.generator(code).detach()
            against = F.softplus(model.critic(fake)).mean() + F.softplus(-model.critic(real)).mean()
            against.backward()
            critics.step()
            t.optimizer.zero_grad()
            value = t.loss(t.model, (real, code))
            value.backward()
            t.optimizer.step()
            yield float(value.detach())

    return Training(
        model,
        torch.optim.Adam(model.generator.parameters(), lr, betas=(0.5, 0.9)),
        loss,
        batch,
        steps=500,
        score=lambda: sliced_distance(model.generator(noise), test),
        target=0.6,
        others=(torch.optim.Adam(model.critic.parameters(), lr, betas=(0.5, 0.9)),),
        loop=loop,
        facts={"lr": lr},
    )


@healthy(net="gan", blind=True)
def penalised_critic(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """WGAN-GP, two steps of the critic to one of the generator. Its losses are signed differences of scores."""
    model, lr = Pair(48), log_uniform(random, 5e-4, 1e-3)
    weight = log_uniform(random, 0.3, 3.0)
    centres, test = ring(seed, integer(random, 3, 6))
    noise = torch.randn(1000, CODE, generator=generator(seed, 3))

    def batch(i: int) -> Batch:
        g = generator(seed, i)
        return around(centres, 2 * 64, g), torch.randn(2 * 64, CODE, generator=g)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return -model.critic(model.generator(batch[1])).mean()

    def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
        share = torch.linspace(0, 1, len(real))[:, None]
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(model.critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return model.critic(fake).mean() - model.critic(real).mean() + weight * penalty

    def loop(t: Training) -> Iterator[float]:
        (critics,) = t.others
        for i in range(t.steps):
            reals, codes = t.batch(i)
            for real, code in zip(reals.chunk(2), codes.chunk(2), strict=True):
                critics.zero_grad()
                critic_loss(real, model.generator(code).detach()).backward()
                critics.step()
            t.optimizer.zero_grad()
            value = t.loss(t.model, (reals, codes))
            value.backward()
            t.optimizer.step()
            yield float(value.detach())

    return Training(
        model,
        torch.optim.Adam(model.generator.parameters(), lr, betas=(0.0, 0.9)),
        loss,
        batch,
        steps=250,
        score=lambda: sliced_distance(model.generator(noise), test),
        target=0.6,
        others=(torch.optim.Adam(model.critic.parameters(), 4 * lr, betas=(0.0, 0.9)),),
        loop=loop,
        facts={"lr": lr, "weight": weight},
    )
