"""Healthy: losses of reinforcement learning, which measure no progress."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import MLP, generator, integer, log_uniform, uniform
from benchmarks.zoo.training import Training


@healthy(net="policy")
def policy_gradient(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """REINFORCE with eight episodes to a step: a signed loss near zero that is nearly all noise."""
    states, actions, noise = 6, integer(random, 3, 5), uniform(random, 0.5, 1.5)
    worth = torch.randn(states, actions, generator=generator(seed, 2))
    model = MLP(states, 32, 1, actions)
    with torch.no_grad():
        model.last.weight.mul_(0.1)

    def batch(i: int) -> tuple[Tensor, Tensor, Tensor]:
        """States, and the random numbers of action and reward."""
        g = generator(seed, i)
        return (
            torch.randn(8, states, generator=g),
            torch.rand(8, actions, generator=g),
            noise * torch.randn(8, generator=g),
        )

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        state, luck, extra = batch
        logits = model(state)
        action = (logits.detach() - (-luck.log()).log()).argmax(1)  # Gumbel: a sample of the policy
        reward = (state @ worth)[torch.arange(len(state)), action] + extra
        chosen = F.log_softmax(logits, 1)[torch.arange(len(state)), action]
        return -(chosen * reward).mean()

    test = torch.randn(1000, states, generator=generator(seed, 3))
    values = test @ worth

    def regret() -> float:
        """Of the best action in each state; 1 is a random policy's."""
        got = values.gather(1, model(test).argmax(1, keepdim=True)).mean()
        best = values.max(1).values.mean()
        return float((best - got) / (best - values.mean()))

    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 2e-3, 5e-3)),
        loss,
        batch,
        steps=800,
        score=regret,
        target=0.4,
        facts={"noise": noise, "actions": actions},
    )


class Ladder:
    """States in a row, the last one pays 1. The first action climbs a step or slips two, by luck; others go down."""

    def __init__(self, states: int, actions: int, discount: float) -> None:
        here = torch.arange(states)[:, None]
        up, slip = (here + 1).clamp_max(states - 1), (here - 2).clamp_min(0)
        down = (here - 1).clamp_min(0).expand(-1, actions - 1)
        self.after = torch.stack([torch.cat([up, down], 1), torch.cat([slip, down], 1)], -1)  # (S, A, luck)
        self.reward = torch.zeros(states)
        self.reward[-1] = 1.0
        self.looks = torch.eye(states)
        self.discount = discount

    def values(self) -> Tensor:
        """The best value of each state and action, by iteration to the fixed point."""
        q = torch.zeros(self.after.shape[:2])
        for _ in range(1000):
            q = self.reward[:, None] + self.discount * q.max(1).values[self.after].mean(-1)
        return q


@healthy(net="q", blind=True)
def slow_target_copies(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Q-learning towards a copy of itself that is renewed now and then.

    The first memories hold hardly any reward; as better ones come in, values and the loss grow from about 0.
    """
    states, actions = integer(random, 10, 14), 3
    every, discount = integer(random, 18, 25), uniform(random, 0.85, 0.91)
    ladder, steps = Ladder(states, actions, discount), 40 * every
    model = MLP(states, 64, 1, actions)
    with torch.no_grad():
        model.last.weight.mul_(0.1)
    copies = copy.deepcopy(model)

    def batch(i: int) -> tuple[Tensor, Tensor, Tensor]:
        """States, actions and next states from a memory that reaches further up as time goes on."""
        g = generator(seed, i)
        low = 1 + 7 * max(0.0, 1 - i / (0.5 * steps))  # 8: mostly the lowest states, 1: all alike
        state = (states * torch.rand(64, generator=g) ** low).long()
        action = torch.randint(0, actions, (64,), generator=g)
        luck = torch.randint(0, 2, (64,), generator=g)
        return state, action, ladder.after[state, action, luck]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        state, action, after = batch
        with torch.no_grad():
            aim = ladder.reward[state] + discount * copies(ladder.looks[after]).max(1).values
        guess = model(ladder.looks[state]).gather(1, action[:, None])[:, 0]
        return F.mse_loss(guess, aim)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            if i % every == 0:
                copies.load_state_dict(t.model.state_dict())
            t.optimizer.zero_grad()
            value = t.loss(t.model, t.batch(i))
            value.backward()
            t.optimizer.step()
            yield float(value.detach())

    truth = ladder.values()
    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 2e-3, 5e-3)),
        loss,
        batch,
        steps=steps,
        score=lambda: float((model(ladder.looks) - truth).abs().mean() / truth.abs().mean()),
        target=0.35,
        loop=loop,
        facts={"discount": discount, "every": every},
    )
