"""A right loss, called wrongly: what it is given is not what it takes."""

from __future__ import annotations

import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    TransformerLM,
    cross_entropy,
    eval_loss,
    log_uniform,
    moons,
    regression,
    tokens,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


@failing("loop_mistake", net="transformer")
def softmax_before_cross_entropy(random: RandomState, seed: int, fixed: bool) -> Training:
    """Probabilities where logits are meant: the loss can hardly fall, its gradient vanishes."""
    rate = uniform(random, 0.2, 0.3)
    model = TransformerLM(depth=2)
    data = tokens(seed, lag=3)

    def loss(model, batch):
        x, y = batch
        logits = model(x).flatten(0, 1)
        return F.cross_entropy(logits if fixed else logits.softmax(-1), y.flatten())

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate, momentum=0.9),
        loss=loss,
        batch=data.batches(seed, 32),
        steps=200,
        score=eval_loss(model, cross_entropy, data),
        target=2.1,
        where="loss",
        facts={"lr": rate},
    )


@failing("loop_mistake", net="mlp", blind=True)
def softmax_of_one_unit(random: RandomState, seed: int, fixed: bool) -> Training:
    """A softmax over a single output is 1, whatever the net says."""
    rate = uniform(random, 3e-3, 1e-2)
    model = MLP(2, 48, 2, 1)
    data = moons(seed)

    def probability(model: nn.Module, x: Tensor) -> Tensor:
        logits = model(x)
        return logits.sigmoid() if fixed else logits.softmax(1)

    def loss(model, batch):
        x, y = batch
        return F.binary_cross_entropy(probability(model, x).squeeze(1), y.float())

    def score():
        """Share of wrong answers."""
        return float(((probability(model, data.test_x).squeeze(1) > 0.5) != data.test_y).float().mean())

    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=rate),
        loss=loss,
        batch=data.batches(seed),
        steps=200,
        score=score,
        target=0.15,
        where="loss",
        facts={"lr": rate},
    )


@failing("loop_mistake", net="mlp")
def targets_broadcast(random: RandomState, seed: int, fixed: bool) -> Training:
    """(B, 1) minus (B): every output is compared with every target, and the best answer is their mean."""
    rate = log_uniform(random, 1e-3, 4e-3)
    model = MLP(20, 64, 2, 1)
    data = regression(seed)

    def loss(model, batch):
        x, y = batch
        return ((model(x) - (y if fixed else y.squeeze(1))) ** 2).mean()

    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=rate),
        loss=loss,
        batch=data.batches(seed),
        steps=250,
        score=unexplained(model, data),
        target=0.4,
        where="loss",
        facts={"lr": rate},
    )
