"""The register of families."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.zoo.training import Training

Build = Callable[[np.random.RandomState, int, bool], Training]


@dataclass(frozen=True)
class Family:
    """One kind of training, drawn anew for each seed.

    ``causes`` are the names that count as right, the canonical one first; empty for a healthy family. ``visible``:
    the fault can be seen in the first step (the model, the first batch, the optimizer and its schedule as built).
    """

    name: str
    build_with: Build
    causes: tuple[str, ...]
    net: str  # mlp, cnn, rnn, transformer, gan, ...
    blind: bool
    visible: bool
    twin: bool  # whether it has one without the fault

    @property
    def healthy(self) -> bool:
        return not self.causes

    def build(self, seed: int, fixed: bool = False) -> Training:
        """The training of a seed; ``fixed`` is its twin without the planted fault: same draw, same weights."""
        random = np.random.RandomState(1009 * seed + 17)
        torch.manual_seed(seed)
        return self.build_with(random, seed, fixed)


_families: dict[str, Family] = {}


def failing(*causes: str, net: str, blind: bool = False, visible: bool = True) -> Callable[[Build], Build]:
    """Register ``build(random, seed, fixed)`` under its function's name."""

    def register(build: Build) -> Build:
        assert causes, f"{build.__name__} fails for no cause"
        assert build.__name__ not in _families, f"two families are called {build.__name__}"
        _families[build.__name__] = Family(build.__name__, build, causes, net, blind, visible, twin=True)
        return build

    return register


def healthy(*, net: str, blind: bool = False) -> Callable[[Build], Build]:
    """Register a training that must be left alone, however it looks. ``fixed`` is always False."""

    def register(build: Build) -> Build:
        assert build.__name__ not in _families, f"two families are called {build.__name__}"
        _families[build.__name__] = Family(build.__name__, build, (), net, blind, visible=False, twin=False)
        return build

    return register


def families(blind: bool | None = None) -> list[Family]:
    """All families, or only the blind or the other ones, in the order of their files."""
    import benchmarks.zoo.cases as cases

    for module in sorted(pkgutil.iter_modules(cases.__path__), key=lambda m: m.name):
        importlib.import_module(f"{cases.__name__}.{module.name}")
    return [f for f in _families.values() if blind is None or f.blind == blind]
