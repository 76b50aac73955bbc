"""Another optimizer in the place of the user's, which goes on telling it the schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._gradients import unscale_
from steadygrad.repair.effects._unseen import unseen
from steadygrad.repair.effects._values import positive
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable, Step

KINDS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop")


class OtherOptimizer(Effect):
    """Each step is taken by a new optimizer of torch over the user's parameter groups.

    Value: ``{"name": "AdamW", "lr": 0.001}``, with further arguments of that class. It is bit for bit as if the script
    built this optimizer: the user's schedule goes on on his own one, and the new rate follows it,

        rate = lr * (user's rate / user's base rate)

    where the base rate is ``max_lr`` of a OneCycleLR (in the script it becomes ``lr``), else the rate before any
    schedule. So does a momentum that a scheduler cycles. Weight decay that a group has of its own is kept.

    With a closure the gradients are those of its first evaluation. Hooks on the steps of the user's optimizer are not
    called.
    """

    key: ClassVar[str] = "optimizer"
    order: ClassVar[int] = 40

    def __init__(self, value: Any) -> None:
        settings = dict(value) if isinstance(value, Mapping) else {}
        self._name = settings.pop("name", None)
        if self._name not in KINDS:
            raise NotApplicable(f"optimizer needs a name, one of {', '.join(KINDS)}; got {value!r}")
        self._kind: Any = getattr(torch.optim, self._name)
        self._lr = positive("lr of optimizer", settings.get("lr"))
        self._settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        try:
            inspect.signature(self._kind).bind([], **self._settings)
        except TypeError as error:
            raise NotApplicable(f"optimizer: {self._name} {error}") from error
        self._first: WeakKeyDictionary[Optimizer, list[float]] = WeakKeyDictionary()
        self._shadows: WeakKeyDictionary[Optimizer, Optimizer] = WeakKeyDictionary()

    def models(self, models: Models) -> None:
        for optimizer in models.optimizers:
            self._remember(optimizer)

    def before_step(self, optimizer: Optimizer) -> Step:
        self._remember(optimizer)
        if self._name != "SGD" and any(
            p.grad is not None and p.grad.is_sparse for p in flat_params(optimizer)
        ):
            raise NotApplicable(f"{self._name} takes no sparse gradients")
        unscale_(optimizer)
        shadow = self._shadows.get(optimizer)
        if shadow is None:
            with unseen(optimizer):
                shadow = self._build(optimizer)
            self._shadows[optimizer] = shadow
        self._follow(shadow, optimizer)
        shadow.step()
        return "taken"

    def _remember(self, optimizer: Optimizer) -> None:
        """The rates before a script that sets them by hand has done so."""
        first = self._first.setdefault(optimizer, [])
        usual = optimizer.defaults.get("lr", 0.0)
        first += [max(float(g.get("lr", 0.0)), float(usual)) for g in optimizer.param_groups[len(first) :]]

    def _build(self, optimizer: Optimizer) -> Optimizer:
        try:
            groups = [self._group(optimizer, g) for g in optimizer.param_groups]
            return cast(Optimizer, self._kind(groups, **self._settings))
        except ValueError as error:
            raise NotApplicable(f"optimizer: {error}") from error

    def _group(self, optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {"params": group["params"]}
        decay = group.get("weight_decay")
        if decay is not None and decay != optimizer.defaults.get("weight_decay"):
            own["weight_decay"] = decay
        if group.get("maximize"):
            own["maximize"] = True
        return own

    def _follow(self, shadow: Optimizer, optimizer: Optimizer) -> None:
        """Parameters, rate and cycled momentum as the user's groups have them now."""
        groups, first = optimizer.param_groups, self._first[optimizer]
        for group in groups[len(shadow.param_groups) :]:
            shadow.add_param_group(self._group(optimizer, group))
        del shadow.param_groups[len(groups) :]
        for own, group, rate in zip(shadow.param_groups, groups, first, strict=True):
            own["params"] = group["params"]
            base = float(group.get("max_lr") or group.get("initial_lr") or rate)
            if base > 0:
                own["lr"] = self._lr * (float(group.get("lr", base)) / base)
            if "base_momentum" in group:
                _set_momentum(own, group)


def _set_momentum(own: dict[str, Any], group: dict[str, Any]) -> None:
    """Momentum and the first beta are one to a scheduler that cycles them."""
    momentum = group["betas"][0] if "betas" in group else group["momentum"]
    if "betas" in own:
        own["betas"] = (momentum, *own["betas"][1:])
    elif "momentum" in own:
        own["momentum"] = momentum
