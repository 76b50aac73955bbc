"""A trunk and a head over it: gradients cut, statistics that move, features of the wrong size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    cross_entropy,
    digits,
    eval_error,
    eval_loss,
    log_uniform,
    uniform,
)
from benchmarks.zoo.training import Training


def classify(model, optimizer, seed, steps, target=0.8, data=None, loss=cross_entropy, **more) -> Training:
    """Digits, scored by their test loss: 2.3 for a guess."""
    data = data or digits()
    return Training(
        model=model,
        optimizer=optimizer,
        loss=loss,
        batch=data.batches(seed),
        steps=steps,
        score=eval_loss(model, cross_entropy, data),
        target=target,
        **more,
    )


class Split(nn.Module):
    """A trunk that ends in few features, and a head; ``detached``: no gradient reaches the trunk."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.trunk = MLP(64, 64, 3, 4)
        self.head = nn.Linear(4, 10)
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        return self.head(torch.tanh(z.detach() if self.detached else z))


@failing("loop_mistake", net="mlp", blind=True)
def trunk_detached(random: RandomState, seed: int, fixed: bool) -> Training:
    rate = uniform(random, 2e-3, 5e-3)
    model = Split(detached=not fixed)
    return classify(
        model, Adam(model.parameters(), lr=rate), seed, 250, 1.2, where="trunk", facts={"lr": rate}
    )


@failing("loop_mistake", "data_shift", net="mlp", visible=False)
def frozen_backbone_statistics(random: RandomState, seed: int, fixed: bool) -> Training:
    """A frozen backbone in train mode, fed one class at a time: its batch norms wipe out what tells the classes
    apart, and their running statistics drift. Evaluated in eval mode."""
    rate = uniform(random, 2e-3, 5e-3)
    model = MLP(64, 64, 2, 10, norm=nn.BatchNorm1d)
    data = digits()
    pretrain = Adam(model.parameters(), lr=3e-3)
    for i in range(100):
        pretrain.zero_grad()
        cross_entropy(model, data.batches(seed + 1)(i)).backward()
        pretrain.step()
    pretrain.zero_grad()
    for p in model.parameters():
        p.requires_grad_(False)
    model.last = nn.Linear(64, 10)  # the new task: the same digits, counted from 9
    task = data.map(y=lambda y: 9 - y)

    def batch(i):
        members = task.train_x[task.train_y == i % 10]
        rows = torch.randint(0, len(members), (32,), generator=torch.Generator().manual_seed(7919 * seed + i))
        return members[rows], torch.full((32,), i % 10)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            t.model.train()
            if fixed:
                t.model.blocks.eval()
            t.optimizer.zero_grad()
            loss = t.loss(t.model, t.batch(i))
            loss.backward()
            t.optimizer.step()
            yield float(loss.detach())

    return Training(
        model=model,
        optimizer=SGD(model.last.parameters(), lr=rate),
        loss=cross_entropy,
        batch=batch,
        steps=300,
        score=eval_error(model, task),
        target=0.3,
        loop=loop,
        where="blocks",
        facts={"lr": rate},
    )


@failing("unscaled_inputs", net="mlp", blind=True)
def frozen_backbone_raw_features(random: RandomState, seed: int, fixed: bool) -> Training:
    """A new head over the features of a frozen backbone, which are far larger than a head expects."""
    scale, rate = log_uniform(random, 100, 1000), uniform(random, 0.03, 0.1)
    backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
    with torch.no_grad():
        backbone[0].weight *= scale
        backbone[0].bias *= scale
    for p in backbone.parameters():
        p.requires_grad_(False)
    between = nn.LayerNorm(128) if fixed else nn.Identity()
    model = nn.Sequential(backbone, between, nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    trained = [p for p in model.parameters() if p.requires_grad]
    return classify(model, SGD(trained, lr=rate), seed, 250, where="0", facts={"scale": scale, "lr": rate})
