"""The learning rate: lower or higher, risen from 0, bounded, let down at the end."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.repair.effects._groups import GroupEffect
from steadygrad.repair.effects._values import count, positive
from steadygrad.repair.effects.effect import Step

LAST = 0.02  # of the rate, at the end of a decay
JUMP = 2.0  # times the rate of the step before: a restart


class RateEffect(GroupEffect):
    """Multiplies the rate of each group by a factor that depends on the step."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.seen: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # steps called
        self.taken: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def change(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        if "lr" not in group:
            return
        factor = self.factor(optimizer, group)
        if factor != 1.0:
            self.set(group, "lr", group["lr"] * factor)

    def factor(self, optimizer: Optimizer, group: dict[str, Any]) -> float:
        raise NotImplementedError

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self.seen[optimizer] = self.seen.get(optimizer, 0) + 1
        self.taken[optimizer] = self.taken.get(optimizer, 0) + applied


class _Bound(GroupEffect):
    """A bound on the rate, so many times what it was in the first step of its group."""

    order: ClassVar[int] = 29  # before the factors: the bound is that of the user's own rate

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._times = positive(self.key, value)
        self._first: WeakKeyDictionary[Optimizer, list[float]] = WeakKeyDictionary()

    def beyond(self, rate: float, bound: float) -> bool:
        raise NotImplementedError

    def before_step(self, optimizer: Optimizer) -> Step:
        first = self._first.setdefault(optimizer, [])
        first += [float(g.get("lr", 0.0)) for g in optimizer.param_groups[len(first) :]]
        for group, rate in zip(optimizer.param_groups, first, strict=False):
            bound = self._times * rate
            if bound > 0 and self.beyond(group.get("lr", bound), bound):
                tensor = isinstance(group["lr"], Tensor)
                self.set(group, "lr", torch.full_like(group["lr"], bound) if tensor else bound)
        return "take"


class LrCap(_Bound):
    """The rate never rises above ``value`` times what it was in the first step of its group."""

    key: ClassVar[str] = "lr_cap"

    def beyond(self, rate: float, bound: float) -> bool:
        return rate > bound


class LrFloor(_Bound):
    """The rate never falls below ``value`` times what it was in the first step of its group."""

    key: ClassVar[str] = "lr_floor"

    def beyond(self, rate: float, bound: float) -> bool:
        return rate < bound


class LrFactor(RateEffect):
    """The rate is multiplied by ``value``, above 0."""

    key: ClassVar[str] = "lr_factor"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._factor = positive(self.key, value)

    def factor(self, optimizer: Optimizer, group: dict[str, Any]) -> float:
        return self._factor


class Warmup(RateEffect):
    """The rate rises from 0, in a line, over the first ``value`` steps that are taken."""

    key: ClassVar[str] = "warmup_steps"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._steps = positive(self.key, value)

    def factor(self, optimizer: Optimizer, group: dict[str, Any]) -> float:
        return min(1.0, (self.taken.get(optimizer, 0) + 1) / self._steps)


class LrDecay(RateEffect):
    """Over the last half of ``value`` steps, the length of the run, the rate falls in a line to 2 % of itself."""

    key: ClassVar[str] = "lr_decay"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._steps = count(self.key, value)

    def factor(self, optimizer: Optimizer, group: dict[str, Any]) -> float:
        left = 1 - self.seen.get(optimizer, 0) / self._steps
        return min(1.0, max(LAST, 2 * left))


class Rewarm(RateEffect):
    """After a step that was skipped, and where the rate jumps up, it rises anew over ``value`` steps.

    A jump is a rate of more than twice that of the step before, as in warm restarts. The first step is none.
    """

    key: ClassVar[str] = "rewarm_steps"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._steps = count(self.key, value)
        self._last: WeakKeyDictionary[Optimizer, float] = WeakKeyDictionary()
        self._since: WeakKeyDictionary[Optimizer, int] = (
            WeakKeyDictionary()
        )  # steps taken since; none: no reason yet

    def before_step(self, optimizer: Optimizer) -> Step:
        rate = float(optimizer.param_groups[0].get("lr", 0.0))
        if rate > JUMP * self._last.get(optimizer, rate) > 0:
            self._since[optimizer] = 0
        self._last[optimizer] = rate
        return super().before_step(optimizer)

    def factor(self, optimizer: Optimizer, group: dict[str, Any]) -> float:
        return min(1.0, (self._since.get(optimizer, self._steps) + 1) / self._steps)

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        super().after_step(optimizer, applied)
        if not applied:
            self._since[optimizer] = 0
        elif optimizer in self._since:
            self._since[optimizer] += 1
