"""One small training: what an ordinary script would build, its loop, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Loop = Callable[["Training"], Iterator[float]]
Kind = Literal["trained", "nonfinite", "exploded", "stuck"]


@dataclass
class Training:
    """Everything a run needs. Nothing has been trained yet.

    ``batch(i)`` is the batch of step ``i``: the same i gives the same batch, whenever it is asked for. ``score()``
    is the training's own measure of success, lower is better, on data fixed in advance; the run has trained if it
    is at most ``target`` and every parameter is finite.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[nn.Module, Any], Tensor]
    batch: Callable[[int], Any]
    steps: int
    score: Callable[[], float]
    target: float
    scheduler: Any = None  # .step() after every optimizer step
    others: tuple[Optimizer, ...] = ()  # further optimizers of an own loop
    loop: Loop | None = None  # None: plain_loop
    at: int | None = None  # step of the planted event, where it is one event
    where: str = (
        ""  # module or parameter of the planted fault, "loss" if it is the loss, "" if it is in no one place
    )
    facts: dict[str, float] = field(default_factory=dict)  # what was drawn, for the table

    def train(self) -> Iterator[float]:
        """Train, step by step; yields the loss of each step. May be abandoned half-way."""
        return (self.loop or plain_loop)(self)


def plain_loop(t: Training) -> Iterator[float]:
    """The loop of an ordinary script."""
    for i in range(t.steps):
        t.optimizer.zero_grad()
        loss = t.loss(t.model, t.batch(i))
        loss.backward()
        t.optimizer.step()
        if t.scheduler is not None:
            t.scheduler.step()
        yield float(loss.detach())


@dataclass(frozen=True)
class Outcome:
    """How a run ended without any help."""

    kind: Kind
    score: float
    first_loss: float
    last_loss: float  # median of the last 20 finite losses
    max_loss: float  # largest absolute finite loss
    first_nonfinite: int | None  # step of the first loss that is not finite
    steps: int

    @property
    def trained(self) -> bool:
        return self.kind == "trained"


def outcome(training: Training) -> Outcome:
    """Run to the end, or until the parameters have been non-finite for three steps, and judge."""
    losses: list[float] = []
    dead = 0
    for loss in training.train():
        losses.append(loss)
        dead = 0 if _finite(training.model) else dead + 1
        if dead >= 3:
            break
    return judge(training, losses)


def judge(training: Training, losses: list[float]) -> Outcome:
    """How a run ended, from its losses and the model as it is now."""
    finite = [x for x in losses if math.isfinite(x)]
    training.model.eval()
    try:
        with torch.no_grad():
            score = training.score()
    finally:
        training.model.train()
    first = losses[0] if losses else math.nan
    largest = max((abs(x) for x in finite), default=math.nan)
    good = math.isfinite(score) and score <= training.target
    kind: Kind
    if not _finite(training.model):
        kind = "nonfinite"
    elif good:
        kind = "trained"
    elif largest > 100 * abs(first) + 100:
        kind = "exploded"
    else:
        kind = "stuck"
    tail = sorted(finite[-20:])
    return Outcome(
        kind=kind,
        score=score,
        first_loss=first,
        last_loss=tail[len(tail) // 2] if tail else math.nan,
        max_loss=largest,
        first_nonfinite=next((i for i, x in enumerate(losses) if not math.isfinite(x)), None),
        steps=len(losses),
    )


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
