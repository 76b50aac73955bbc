"""Biases kept where their units are alive."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from steadygrad.repair.effects._weights import present
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable

STEPS = 200  # by then a unit that was born dead has been revived


def _layers(models: Models, paths: list[str], done: set[int]) -> list[nn.Module]:
    found = present(models, paths, done)
    for path, module in found:
        if not isinstance(module, (nn.Linear, _ConvNd)) or module.bias is None:
            raise NotApplicable(f"{path} is no linear layer or convolution with a bias")
    return [module for _, module in found]


class DeadUnitReset(Effect):
    """Units in front of a ReLU that are negative on whole batches get a bias that centres them.

    The value is ``{"modules": [path, ...], "steps": 200}``: the layers in front of the ReLUs, and for how many steps
    they are watched. A unit that was never above 0 in the passes that led to a step has its mean over them taken
    off its bias after the step, so that it is positive on about half of its inputs. Others are left alone, bit for bit.
    """

    key = "dead_unit_reset"
    order = 72

    def __init__(self, value: Any) -> None:
        self._paths = [str(path) for path in value["modules"]]
        self._left = int(value.get("steps", STEPS))
        self._done: set[int] = set()
        self._hooks: list[Any] = []
        self._seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}  # largest value and mean, of each unit

    def models(self, models: Models) -> None:
        for module in _layers(models, self._paths, self._done):
            self._hooks.append(module.register_forward_hook(self._look))

    @torch.no_grad()
    def _look(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._left <= 0 or not module.training or not output.requires_grad or not output.numel():
            return
        if isinstance(module, _ConvNd):
            units = (
                output.detach().transpose(0, 1) if output.dim() == module.weight.dim() else output.detach()
            )
        else:
            units = output.detach().movedim(-1, 0)
        units = units.flatten(1)
        self._seen.setdefault(module, []).append((units.amax(1), units.mean(1)))

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = [module for module in self._seen if id(module.bias) in own]
        for module in mine:
            looks = self._seen.pop(module)
            largest = torch.stack([look[0] for look in looks]).amax(0)
            mean = torch.stack([look[1] for look in looks]).mean(0)
            bias = module.bias
            assert isinstance(bias, Tensor)
            dead = (largest <= 0) & mean.isfinite()
            if applied and bool(dead.any()):  # host sync
                bias.copy_(torch.where(dead, bias - mean.to(bias), bias))
        self._left -= bool(mine)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], {}


class BiasClamp(Effect):
    """Biases held within bounds after each step. The value is ``{"modules": [path, ...], "limit": 1}``, limit > 0.

    A nan stays a nan.
    """

    key = "bias_clamp"
    order = 72

    def __init__(self, value: Any) -> None:
        self._paths = [str(path) for path in value["modules"]]
        self._limit = float(value.get("limit", 1.0))
        if not 0 < self._limit < math.inf:
            raise NotApplicable(f"the limit must be positive and finite, got {self._limit}")
        self._done: set[int] = set()
        self._modules: list[nn.Module] = []

    def models(self, models: Models) -> None:
        self._modules += _layers(models, self._paths, self._done)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for module in self._modules:
            if id(module.bias) in own and isinstance(module.bias, Tensor):
                module.bias.clamp_(-self._limit, self._limit)
