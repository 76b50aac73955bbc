"""What the guard does to the gradients of an optimizer, in place."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from steadygrad.probe.names import flat_params


@torch.no_grad()
def scale_gradients_(optimizer: Optimizer, factor: float) -> None:
    """Clip: all of them times one factor."""
    for p in flat_params(optimizer):
        if p.grad is not None:
            p.grad.mul_(factor)


@torch.no_grad()
def zero_gradients_(optimizer: Optimizer) -> None:
    """A poisoned gradient must not be accumulated into by a loop that clears late."""
    for p in flat_params(optimizer):
        if p.grad is not None:
            p.grad.zero_()
