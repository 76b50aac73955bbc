"""Weights kept within bounds, as in a Wasserstein critic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._values import positive
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable


class WeightClip(Effect):
    """After each step every weight is clamped to [-max, max].

    Value: ``{"max": 0.01}``, and with ``"optimizer": 1`` only what the second optimizer that was built trains (the
    critic). NaN stays NaN.
    """

    key: ClassVar[str] = "weight_clip"

    def __init__(self, value: Any) -> None:
        if not isinstance(value, Mapping) or "max" not in value:
            raise NotApplicable(f'weight_clip needs a bound, {{"max": 0.01}}; got {value!r}')
        self._max = positive("max of weight_clip", value["max"])
        self._index = value.get("optimizer")
        if self._index is not None and (not isinstance(self._index, int) or self._index < 0):
            raise NotApplicable(f"optimizer of weight_clip must be its number from 0, got {self._index!r}")
        self._optimizers: tuple[Optimizer, ...] = ()

    def models(self, models: Models) -> None:
        self._optimizers = models.optimizers

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        others = self._index is not None and self._optimizers[self._index : self._index + 1] != (optimizer,)
        if others or not applied:
            return
        for p in flat_params(optimizer):
            p.clamp_(-self._max, self._max)
