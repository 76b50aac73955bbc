"""Momentum and weight decay, lowered."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch.optim import Optimizer

from steadygrad.repair.effects._groups import GroupEffect
from steadygrad.repair.effects._values import fraction
from steadygrad.repair.effects.effect import NotApplicable


class Momentum(GroupEffect):
    """Momentum, or the first beta, is at most ``value``, from 0 to below 1; also where a scheduler cycles it."""

    key: ClassVar[str] = "momentum"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._most = fraction(self.key, value)

    def change(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        if group.get("momentum"):
            self.set(group, "momentum", min(float(group["momentum"]), self._most))
        betas = group.get("betas")
        if isinstance(betas, (tuple, list)) and len(betas) >= 2:
            self.set(group, "betas", type(betas)((min(float(betas[0]), self._most), *betas[1:])))


class WeightDecay(GroupEffect):
    """Weight decay is at most ``value``, 0 or more."""

    key: ClassVar[str] = "weight_decay"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise NotApplicable(f"weight_decay must be a finite number of at least 0, got {value!r}")
        self._most = float(value)

    def change(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        if group.get("weight_decay", 0.0) > self._most:
            self.set(group, "weight_decay", self._most)
