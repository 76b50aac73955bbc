"""One step of a user's training under the locator, on a state that is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import TrainingState
from steadygrad.locating.exact import Locator
from steadygrad.records import FirstNonFinite


def locate(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    optimizer: Optimizer | None = None,
) -> FirstNonFinite | None:
    """Find what makes the first NaN or infinity in one training step.

    Runs forward, backward and, with an optimizer, its step. Afterwards parameters, buffers, gradients, the
    optimizer's state and the random streams are as they were, errors included. The gradients are empty when the
    step begins.

    Args:
        model: as it was before the step that went wrong, in the mode (train or eval) of that step.
        loss_fn: ``loss_fn(model, batch)`` gives the loss, a tensor with one value.
        batch: whatever ``loss_fn`` takes.
        optimizer: to look into its arithmetic as well.

    Returns:
        The producer; None if the loss, the gradients and the update are finite.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> found = locate(model, lambda m, x: (m(x) * 0).sqrt().mean(), torch.ones(4, 2))
        >>> found.kind, found.op, found.detail
        ('backward', 'sqrt', 'the derivative of sqrt is not finite at 0: 4 of 4 values')
    """
    locator = Locator([model])
    with _put_back(model, optimizer), locator:
        loss = loss_fn(model, batch)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
    return locator.first


@contextmanager
def _put_back(model: nn.Module, optimizer: Optimizer | None) -> Iterator[None]:
    """The block begins without gradients; at its end all that it has changed is as it was."""
    optimizers = [] if optimizer is None else [optimizer]
    state = TrainingState([model], optimizers)
    snapshot = Snapshot()
    snapshot.take(state, 0)
    params = {id(p): p for p in model.parameters()}
    for group in [g for o in optimizers for g in o.param_groups]:
        params |= {id(p): p for p in group["params"]}
    grads = [(p, p.grad) for p in params.values()]
    for p, _ in grads:
        p.grad = None
    try:
        yield
    finally:
        snapshot.restore(state, rng=True)
        for p, grad in grads:
            p.grad = grad
