"""Learning from returns: values that chase their own estimates, raw returns, shared trunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import MLP, generator, log_uniform, uniform
from benchmarks.zoo.training import Training


@failing("bootstrapped_target", net="mlp")
def value_off_policy(random: RandomState, seed: int, fixed: bool) -> Training:
    """Values linear in features that overlap, from states that the policy seldom visits: each update raises its own
    target more than itself. The twin learns from whole returns, the same for every state: 0."""
    discount, rate = uniform(random, 0.97, 0.995), uniform(random, 0.03, 0.06)
    matrix = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], 1)
    matrix[6] = torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 2.0])
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1, 1, 1, 1, 1, 1, 10.0, 1]]))

    def batch(i):
        return torch.randint(0, 7, (32,), generator=generator(seed + 127, i))

    def loss(model, states):
        value = model(matrix[states])
        with torch.no_grad():
            target = torch.zeros_like(value) if fixed else discount * model(matrix[6]).expand_as(value)
        return F.mse_loss(value, target)

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate),
        loss=loss,
        batch=batch,
        steps=500,
        score=lambda: float(model(matrix).abs().max()),
        target=1.0,
        where="loss",
        facts={"discount": discount, "lr": rate},
    )


@failing("bootstrapped_target", net="mlp", blind=True)
def value_of_growing_states(random: RandomState, seed: int, fixed: bool) -> Training:
    """Each state is larger than the one before, so the net gives the next one a larger value; only early states are
    replayed. The twin learns from the returns of 30 steps."""
    discount, growth, rate = (
        uniform(random, 0.95, 0.99),
        uniform(random, 1.2, 1.4),
        uniform(random, 0.01, 0.03),
    )
    model = MLP(8, 48, 2, 1)
    direction = torch.randn(8, generator=generator(seed, 131)) / 2

    def reward(x: Tensor) -> Tensor:
        return (1 - discount) * torch.tanh(x @ direction)

    def returns(x: Tensor) -> Tensor:
        return sum(discount**k * reward(growth**k * x) for k in range(30))

    def batch(i):
        return torch.randn(64, 8, generator=generator(seed + 139, i))

    def loss(model, x):
        with torch.no_grad():
            target = returns(x) if fixed else reward(x) + discount * model(growth * x).squeeze(1)
        return F.mse_loss(model(x).squeeze(1), target)

    kept = torch.randn(256, 8, generator=generator(seed, 149))

    def score():
        """Share of the variance of the true returns that is left."""
        truth = returns(kept)
        return float(F.mse_loss(model(kept).squeeze(1), truth) / truth.var())

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate),
        loss=loss,
        batch=batch,
        steps=600,
        score=score,
        target=0.4,
        where="loss",
        facts={"discount": discount, "growth": growth, "lr": rate},
    )


CONTEXTS, ACTIONS = 8, 5


class ActorCritic(nn.Module):
    """A trunk, and over it the logits of the actions and the value of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(CONTEXTS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.policy = nn.Linear(64, ACTIONS)
        self.value = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(x)
        return self.policy(z), self.value(z).squeeze(-1)


def bandit(seed: int, size: int = 64):
    """``batch(i)``: contexts (size, 8), the best action of each, and the noise that picks the one to take."""
    matrix = torch.randn(CONTEXTS, ACTIONS, generator=generator(seed, 131))

    def batch(i):
        g = generator(seed + 137, i)
        x = torch.randn(size, CONTEXTS, generator=g)
        noise = -torch.log(-torch.log(torch.rand(size, ACTIONS, generator=g).clamp(1e-6, 1 - 1e-6)))
        return x, (x @ matrix).argmax(1), noise

    return batch


def take(logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions drawn from a policy, and their log-probabilities."""
    actions = (logits + noise).argmax(1)
    return actions, logits.log_softmax(1).gather(1, actions[:, None]).squeeze(1)


def policy_gradient(seed, model, loss, lr, target=0.45, **more) -> Training:
    batch = bandit(seed)
    kept = bandit(seed, 512)(-1)

    def score():
        """Share of contexts in which the likeliest action is not the best; 0.8 by chance."""
        x, best, _ = kept
        return float((model(x)[0].argmax(1) != best).float().mean())

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=lr),
        loss=loss,
        batch=batch,
        steps=500,
        score=score,
        target=target,
        **more,
    )


@failing("unscaled_targets", "unbounded_objective", net="mlp")
def raw_returns(random: RandomState, seed: int, fixed: bool) -> Training:
    """A policy gradient with returns in the unit of the game: sure for ever of the first actions it took."""
    scale, offset = log_uniform(random, 100, 1000), uniform(random, 1.0, 3.0)

    def loss(model, batch):
        x, best, noise = batch
        actions, log_probability = take(model(x)[0], noise)
        returns = scale * (offset + (actions == best).float())
        if fixed:
            returns = (returns - returns.mean()) / (returns.std() + 1e-6)
        return -(log_probability * returns).mean()

    return policy_gradient(seed, ActorCritic(), loss, 0.3, where="loss", facts={"scale": scale})


@failing("unscaled_targets", net="mlp", blind=True)
def value_loss_on_shared_trunk(random: RandomState, seed: int, fixed: bool) -> Training:
    """The error of values in the unit of the game, squared, beside a policy loss of order 1."""
    scale, offset = log_uniform(random, 50, 500), uniform(random, 1.0, 3.0)

    def loss(model, batch):
        x, best, noise = batch
        logits, value = model(x)
        actions, log_probability = take(logits, noise)
        returns = offset + (actions == best).float()
        advantage = (returns - returns.mean()) / (returns.std() + 1e-6)
        error = F.mse_loss(value, returns if fixed else scale * returns)
        return 0.5 * error - (log_probability * advantage).mean()

    return policy_gradient(seed, ActorCritic(), loss, 0.1, 0.6, where="value", facts={"scale": scale})
