"""What effects on the numbers of parameter groups have in common: the user gets his own back after each step."""

from __future__ import annotations

from typing import Any, ClassVar

from torch.optim import Optimizer

from steadygrad.repair.effects.effect import Effect, Step


class GroupEffect(Effect):
    """Changes numbers of each parameter group for one step, so that schedulers go on from the user's own."""

    order: ClassVar[int] = 30

    def __init__(self, value: Any) -> None:
        self._undo: list[tuple[dict[str, Any], str, Any]] = []

    def before_step(self, optimizer: Optimizer) -> Step:
        for group in optimizer.param_groups:
            self.change(optimizer, group)
        return "take"

    def change(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        """Change this group by :meth:`set`, or leave it."""
        raise NotImplementedError

    def set(self, group: dict[str, Any], key: str, value: Any) -> None:
        """Change a value until the step is over."""
        self._undo.append((group, key, group[key]))
        group[key] = value

    def undo_step(self) -> None:
        for group, key, value in reversed(self._undo):
            group[key] = value
        self._undo.clear()
