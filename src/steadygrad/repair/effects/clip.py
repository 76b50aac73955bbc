"""Gradients clipped right before the step: to a norm, by a rule that learns, or value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from steadygrad.clip import AdaGC, AutoClip, ZClip
from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._gradients import unscale_
from steadygrad.repair.effects._unseen import unseen
from steadygrad.repair.effects._values import positive
from steadygrad.repair.effects.effect import Effect, NotApplicable, Step

Rule = Callable[[Sequence[Tensor | None]], Any]
RULES: dict[str, Callable[..., Rule]] = {"ZClip": ZClip, "AutoClip": AutoClip, "AdaGC": AdaGC}


class AdaptiveClip(Effect):
    """The gradient of each optimizer is clipped by a rule of :mod:`steadygrad.clip` that learns from the run.

    Value: ``{"name": "ZClip" | "AutoClip" | "AdaGC"}`` with the rule's settings. A step with NaN or infinity in its
    gradient is neither clipped nor learned from.
    """

    key: ClassVar[str] = "adaptive_clip"
    order: ClassVar[int] = 20

    def __init__(self, value: Any) -> None:
        settings = dict(value) if isinstance(value, Mapping) else {}
        name = settings.pop("name", None)
        if name not in RULES:
            raise NotApplicable(f"adaptive_clip needs a name, one of {', '.join(RULES)}; got {value!r}")
        self._make = lambda: RULES[name](**settings)
        try:
            self._make()
        except (TypeError, ValueError) as error:
            raise NotApplicable(f"adaptive_clip: {error}") from error
        self._rules: WeakKeyDictionary[Optimizer, Rule] = WeakKeyDictionary()

    def before_step(self, optimizer: Optimizer) -> Step:
        if optimizer not in self._rules:
            self._rules[optimizer] = self._make()
        unscale_(optimizer)
        self._rules[optimizer]([p.grad for p in flat_params(optimizer)])
        return "take"


class ClipNorm(Effect):
    """The gradient of each optimizer is clipped to this joint norm, by torch's ``clip_grad_norm_``.

    Value: a finite number above 0. As there, a NaN or an infinity anywhere spoils the whole gradient: put a skip
    beside it.
    """

    key: ClassVar[str] = "clip_norm"
    order: ClassVar[int] = 21

    def __init__(self, value: Any) -> None:
        self._max_norm = positive(self.key, value)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> Step:
        unscale_(optimizer)
        with unseen(optimizer):
            clip_grad_norm_(flat_params(optimizer), self._max_norm)
        return "take"


class ClipValue(Effect):
    """Every entry of the gradient is clamped to [-value, value], by torch's ``clip_grad_value_``.

    Value: a finite number above 0. NaN stays NaN, an infinity becomes the bound.
    """

    key: ClassVar[str] = "clip_value"
    order: ClassVar[int] = 22

    def __init__(self, value: Any) -> None:
        self._max = positive(self.key, value)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> Step:
        unscale_(optimizer)
        with unseen(optimizer):
            clip_grad_value_(flat_params(optimizer), self._max)
        return "take"
