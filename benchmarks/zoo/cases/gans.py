"""A generator against a critic that nothing bounds, or that takes logarithms by hand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam, RMSprop

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    generator,
    moons,
    uniform,
)
from benchmarks.zoo.training import Training


class GAN(nn.Module):
    """Makes points in the plane from noise; the critic tells them from real ones."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.generator = MLP(4, 48, 1, 2)
        self.critic = MLP(2, 48, 2, 1)
        self.scale = scale  # the unit of the points

    def made(self, noise: Tensor) -> Tensor:
        return self.scale * self.generator(noise)


def distance(model: GAN, seed: int) -> float:
    """How far mean and spread of the generated points are from those of the real ones, in spreads."""
    real = model.scale * moons(seed).test_x
    made = model.made(torch.randn(500, 4, generator=generator(seed, 97)))
    spread = real.std(0)
    return float((((made.mean(0) - real.mean(0)) / spread).abs() + (made.std(0) / spread - 1).abs()).max())


def gan(
    seed: int,
    critic_rule,
    maker_rule,
    losses,
    steps: int,
    target: float,
    scale=1.0,
    after_critic=None,
    **more,
) -> Training:
    """A critic's step and a generator's step in turn. ``losses(critic, real, made)`` gives both losses."""
    model = GAN(scale)
    critic, maker = critic_rule(model.critic.parameters()), maker_rule(model.generator.parameters())
    batches = moons(seed).batches(seed)

    def batch(i):
        return scale * batches(i)[0], torch.randn(64, 4, generator=generator(seed + 101, i))

    def loop(t: Training) -> Iterator[float]:
        (maker,) = t.others
        for i in range(t.steps):
            real, noise = t.batch(i)
            t.optimizer.zero_grad()
            loss = t.loss(t.model, (real, noise))
            loss.backward()
            t.optimizer.step()
            if after_critic is not None:
                after_critic(t.model.critic)
            maker.zero_grad()
            _, made_loss = losses(t.model.critic, real, t.model.made(noise))
            made_loss.backward()
            maker.step()
            yield float(loss.detach())

    return Training(
        model=model,
        optimizer=critic,
        others=(maker,),
        loss=lambda model, batch: losses(model.critic, batch[0], model.made(batch[1]).detach())[0],
        batch=batch,
        steps=steps,
        score=lambda: distance(model, seed),
        target=target,
        loop=loop,
        **more,
    )


@failing("unbounded_objective", net="gan")
def critic_unclipped(random: RandomState, seed: int, fixed: bool) -> Training:
    """A Wasserstein critic whose weights nothing bounds: its loss falls for ever, its gradients grow."""
    rate = uniform(random, 0.01, 0.03)

    def losses(critic, real, made):
        return critic(made).mean() - critic(real).mean(), -critic(made).mean()

    def clamp(critic):
        with torch.no_grad():
            for p in critic.parameters():
                p.clamp_(-0.2, 0.2)

    return gan(
        seed,
        partial(RMSprop, lr=rate),
        partial(SGD, lr=0.05),
        losses,
        300,
        0.8,
        after_critic=clamp if fixed else None,
        where="critic",
        facts={"lr": rate},
    )


@failing("unsafe_op", net="gan")
def gan_log_of_sigmoid(random: RandomState, seed: int, fixed: bool) -> Training:
    """log(D) and log(1 - D) by hand: once the critic is sure, a logarithm of 0."""
    rate, scale = uniform(random, 1e-3, 2e-3), uniform(random, 30.0, 60.0)

    def losses(critic, real, made):
        told, false = critic(real), critic(made)
        if fixed:
            return (F.softplus(-told) + F.softplus(false)).mean(), F.softplus(-false).mean()
        truth, lie = torch.sigmoid(told), torch.sigmoid(false)
        return -(torch.log(truth) + torch.log(1 - lie)).mean(), -torch.log(lie).mean()

    return gan(
        seed,
        partial(Adam, lr=rate, betas=(0.5, 0.9)),
        partial(Adam, lr=1e-2, betas=(0.5, 0.9)),
        losses,
        400,
        0.8,
        scale=scale,
        where="loss",
        facts={"lr": rate, "scale": scale},
    )
