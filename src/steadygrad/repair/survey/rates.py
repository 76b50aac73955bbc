"""How the learning rate went: what a schedule has made of it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from statistics import median
from typing import Any, ClassVar
from weakref import ref

from torch.optim import Optimizer

from steadygrad.repair.effects.effect import Step
from steadygrad.repair.survey.surveyor import Surveyor


class Rates(Surveyor):
    """``first``, ``highest``, ``lowest`` and ``usual`` (the median) rate of the optimizer that stepped first.

    Of its first group; empty for an optimizer without a rate.
    """

    key: ClassVar[str] = "rates"

    def __init__(self, value: Any = None) -> None:
        self._main: ref[Optimizer] | None = None
        self._rates = array("d")

    def before_step(self, optimizer: Optimizer) -> Step:
        if self._main is None:
            self._main = ref(optimizer)
        rate = optimizer.param_groups[0].get("lr")
        if optimizer is self._main() and rate is not None:
            self._rates.append(float(rate))  # host sync for a rate that is a tensor on a GPU
        return "take"

    def found(self) -> Mapping[str, Any]:
        rates = self._rates
        if not rates:
            return {}
        return {"first": rates[0], "highest": max(rates), "lowest": min(rates), "usual": median(rates)}
