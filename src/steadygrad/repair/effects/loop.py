"""A training loop that forgets to clear its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

from steadygrad.repair.effects.effect import Effect, Models, Step


class ZeroGradients(Effect):
    """The gradients of all optimizers are cleared at the first backward pass after a step; value 1.

    As ``optimizer.zero_grad()`` before the backward pass. Passes that are gathered for one step add up as before,
    those of a closure that the optimizer calls again do not.
    """

    key: ClassVar[str] = "zero_gradients"
    order: ClassVar[int] = 5  # it must hear of steps that are skipped, or taken in the place of the user's

    def __init__(self, value: Any) -> None:
        self._optimizers: WeakKeyDictionary[Optimizer, None] = WeakKeyDictionary()
        self._stale = self._in_step = False

    def models(self, models: Models) -> None:
        self._optimizers.update(dict.fromkeys(models.optimizers))

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if self._stale:
            for optimizer in list(self._optimizers):
                Optimizer.zero_grad(optimizer)  # not the user's own, which may be what forgets
        self._stale = self._in_step

    def before_step(self, optimizer: Optimizer) -> Step:
        self._optimizers[optimizer] = None
        self._stale = self._in_step = True
        return "take"

    def undo_step(self) -> None:
        self._in_step = False
