"""A mean and a deviation for each feature of a layer, kept with the layer so that copies of it have them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steadygrad.repair.effects.effect import Models, NotApplicable


class Affine(NamedTuple):
    """As it is kept in ``module.__dict__``: plain tensors, so that a saved module asks for no steadygrad."""

    mean: Tensor  # 0-D, or one per feature
    std: Tensor
    axis: int  # of the features; 0: every position of a sample has its own
    power: int = 2  # of the deviation by which gradients are divided

    def along(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation, shaped to go with x; None if x does not have as many features."""
        if self.mean.ndim == 0:
            return self.mean.to(x), self.std.to(x)
        if self.axis == 0:  # of every position of a sample
            if x.ndim < 2 or x[0].numel() != len(self.mean):
                return None
            return self.mean.to(x).view(1, *x.shape[1:]), self.std.to(x).view(1, *x.shape[1:])
        if x.ndim < 1 or not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != len(self.mean):
            return None
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return self.mean.to(x).view(shape), self.std.to(x).view(shape)


def affine_of(spec: Mapping[str, Any]) -> Affine:
    """``{"mean": number or list, "std": the same, "axis": -1, 1 or 0, "power": 1 or 2}``, the last two optional."""
    mean, std = (torch.tensor(spec[name], dtype=torch.float32) for name in ("mean", "std"))
    power = spec.get("power", 2)
    sound = bool(mean.isfinite().all()) and bool(((std > 0) & std.isfinite()).all())
    if mean.shape != std.shape or mean.ndim > 1 or not sound or power not in (1, 2):
        raise NotApplicable(f"means are finite, deviations positive, as many of each, got {dict(spec)}")
    return Affine(mean, std, int(spec.get("axis", -1)), power)


class Kept:
    """Affine maps of a plan, kept with the modules that it names, under one name.

    Args:
        name: in ``module.__dict__``.
        value: ``{"modules": {path: {"mean": ..., "std": ..., "axis": ...}}}``.
    """

    def __init__(self, name: str, value: Any) -> None:
        modules = value.get("modules") if isinstance(value, Mapping) else None
        if not modules:
            raise NotApplicable(
                f'expected {{"modules": {{path: {{"mean": ..., "std": ...}}}}}}, got {value!r}'
            )
        self._name = name
        self._specs = {path: affine_of(spec) for path, spec in modules.items()}
        self._holders: list[nn.Module] = []

    def put(self, models: Models) -> None:
        """Those that are there get theirs.

        Raises:
            NotApplicable: none of them is there.
        """
        found = {path: models.modules[path] for path in self._specs if path in models.modules}
        if not found:
            raise NotApplicable(f"no module is called {' or '.join(map(repr, self._specs))}")
        for path, module in found.items():
            module.__dict__[self._name] = tuple(self._specs[path])
            self._holders.append(module)

    def take(self) -> None:
        for module in self._holders:
            module.__dict__.pop(self._name, None)
        self._holders = []


def kept_with(module: nn.Module, name: str) -> Affine | None:
    found = module.__dict__.get(name)
    return None if found is None else Affine(*found)
