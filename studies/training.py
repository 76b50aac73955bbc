"""An ordinary training under ``sg.watch``, and what its trace says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import steadygrad as sg
from studies.common import Digits, batches

Batch = tuple[Tensor, Tensor]


@contextmanager
def watched(
    model: nn.Module,
    optimizer: Optimizer,
    feed: Iterable[Batch],
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    clip: Callable[[list[Tensor | None]], object] | None = None,
    around: Callable[[Optimizer], AbstractContextManager[object]] = nullcontext,
    **options: Any,
) -> Iterator[sg.Run]:
    """Train on every batch of a feed, watched, and give the run as it was recorded.

    Args:
        clip: called with the gradients before each step.
        around: each step is taken inside ``around(optimizer)``.
        options: of ``sg.watch``; the guard is off unless they say otherwise. A run that it stops is given as it is.
    """
    with TemporaryDirectory() as folder:
        with sg.watch(model, optimizer, runs=folder, **{"guard": "off", **options}) as watcher:
            try:
                for x, y in feed:
                    optimizer.zero_grad()
                    loss_fn(model(x), y).backward()
                    if clip is not None:
                        clip([p.grad for p in model.parameters()])
                    with around(optimizer):
                        optimizer.step()
            except sg.GuardStop:
                pass
        yield sg.Run(watcher.run_dir)


def losses(run: sg.Run) -> list[float]:
    """The loss of each step."""
    return run.scalar("loss")[1].tolist()


def final(values: list[float], last: int = 10) -> float:
    """Mean over the last steps; inf if one of them is not a number, as for a run that blew up."""
    tail = values[-last:]
    return sum(tail) / len(tail) if all(map(math.isfinite, tail)) else math.inf


def thinned(values: list[float], points: int = 100) -> list[float]:
    """Every so many values, for a picture."""
    return [float(f"{v:.4g}") for v in values[:: max(1, len(values) // points)]]


def digit_batches(data: Digits, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """So many batches of the training digits."""
    return ((data.x[i], data.y[i]) for i in islice(batches(len(data.y), size, seed), steps))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share told right."""
    return (model(x).argmax(1) == y).float().mean().item()
