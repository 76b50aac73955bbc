"""An ordinary training around a model and an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.zoo.data import Change, Data, cross_entropy, eval_loss, squared_error, unexplained
from benchmarks.zoo.training import Training


def classification(
    model: nn.Module,
    optimizer: Optimizer,
    data: Data,
    seed: int,
    *,
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy,
    steps: int = 250,
    size: int = 64,
    change: Change | None = None,
    target: float = 0.8,
    **more: Any,
) -> Training:
    """Trained if the mean cross entropy of the test samples is at most ``target``, whatever ``loss`` trains with."""
    batch = data.batches(seed, size, change)
    score = eval_loss(model, cross_entropy, data)
    return Training(model, optimizer, loss, batch, steps, score, target, **more)


def regressing(
    model: nn.Module,
    optimizer: Optimizer,
    data: Data,
    seed: int,
    *,
    loss: Callable[[nn.Module, Any], Tensor] = squared_error,
    steps: int = 250,
    size: int = 64,
    change: Change | None = None,
    target: float = 0.4,
    **more: Any,
) -> Training:
    """Trained if at most the share ``target`` of the targets' variance is left unexplained on the test samples."""
    batch = data.batches(seed, size, change)
    return Training(model, optimizer, loss, batch, steps, unexplained(model, data), target, **more)
