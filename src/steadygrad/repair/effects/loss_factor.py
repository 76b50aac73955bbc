"""The loss multiplied by a factor, for its gradients alone: what the script prints stays its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steadygrad.repair.effects._values import positive
from steadygrad.repair.effects.effect import Effect, Step


class GradientFactor(Effect):
    """Every backward pass is exactly as if its roots were multiplied by ``value``, a finite number above 0."""

    key: ClassVar[str] = "gradient_factor"
    order: ClassVar[int] = 5  # it must hear of steps that are skipped, or taken in the place of the user's

    def __init__(self, value: Any) -> None:
        self._factor = positive(self.key, value)
        self._handles: list[RemovableHandle] = []

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.remove()
        factor = self._factor
        self._handles = [
            root.register_hook(lambda grad: grad * factor) for root in roots if root.requires_grad
        ]

    def before_step(self, optimizer: Optimizer) -> Step:
        self.remove()
        return "take"

    def remove(self) -> None:
        for handle in self._handles:  # a root that is differentiated again must not get it twice
            handle.remove()
        self._handles = []
