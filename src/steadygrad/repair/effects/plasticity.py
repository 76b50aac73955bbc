"""Units that start anew while the net trains, and loaded weights that are made able to learn again."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from steadygrad.plasticity import ContinualBackprop, DormantReset, shrink_and_perturb_
from steadygrad.plasticity._chain import Known, Link, unfit
from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._values import fraction
from steadygrad.repair.effects._weights import (
    Followers,
    LoadedModules,
    check_untrained,
    module_at,
    present,
)
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable


class _Renewal(Effect):
    """Base: a controller of :mod:`steadygrad.plasticity` for the layers of each optimizer, asked after each step."""

    order = 72
    kind: ClassVar[type[DormantReset] | type[ContinualBackprop]]

    def __init__(self, value: Any) -> None:
        self._pairs = {str(path): str(reader) for path, reader in value["links"]}
        self._settings = {name: setting for name, setting in value.items() if name != "links"}
        self._done: set[int] = set()
        self._links: dict[tuple[int, int], tuple[nn.Module, Optimizer, list[Link]]] = {}
        self._of: dict[Optimizer, list[tuple[nn.Module, DormantReset | ContinualBackprop]]] = {}
        if not self._pairs:
            raise NotApplicable(
                f"{self.key} needs links, pairs of a layer and the one that reads it; got none"
            )

    def models(self, models: Models) -> None:
        links = [
            _link(models, path, self._pairs[path]) for path, _ in present(models, self._pairs, self._done)
        ]
        for link in links:
            root = next((r for r in models.roots if _holds(r, link.layer) and _holds(r, link.reader)), None)
            if root is None:
                raise NotApplicable(f"{link.name} and {link.reader_name} are in different models")
            optimizer = next((o for o in models.optimizers if _trains(o, link.layer)), None)
            if optimizer is None or not _trains(optimizer, link.reader):
                raise NotApplicable(f"no optimizer trains both {link.name} and {link.reader_name}")
            self._links.setdefault((id(root), id(optimizer)), (root, optimizer, []))[2].append(link)
        for root, optimizer, mine in self._links.values():
            self._of.setdefault(optimizer, []).append((root, self._controller(root, optimizer, mine)))
        self._links = {}

    def _controller(self, model: nn.Module, optimizer: Optimizer, links: list[Link]) -> Any:
        try:
            return self.kind(model, optimizer, Known(tuple(links)), **self._settings)
        except (TypeError, ValueError) as error:
            raise NotApplicable(f"{self.key}: {error}") from None

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        for model, controller in self._of.get(optimizer, ()):
            if applied and model.training:
                controller.step()

    def remove(self) -> None:
        for controllers in self._of.values():
            for _, controller in controllers:
                controller.close()
        self._of = {}


class DormantUnits(_Renewal):
    """Every so many steps, units that are hardly ever active start anew.

    The value is ``{"links": [[path, reader], ...], "threshold": 0.1, "every": 100}``: layers, each with the path of
    the only one that reads it, and the settings of :class:`steadygrad.plasticity.DormantReset`. Others are left alone,
    bit for bit.
    """

    key = "dormant_reset"
    kind = DormantReset


class ContinualRenewal(_Renewal):
    """At every step a small share of the least useful units starts anew.

    The value is ``{"links": [[path, reader], ...], "replacement_rate": 1e-4, "maturity": 100}``, as for
    ``dormant_reset``, with the settings of :class:`steadygrad.plasticity.ContinualBackprop`.
    """

    key = "continual_backprop"
    kind = ContinualBackprop


def _link(models: Models, path: str, reader_path: str) -> Link:
    layer, reader = module_at(models, path), module_at(models, reader_path)
    for name, module in ((path, layer), (reader_path, reader)):
        if reason := unfit(module):
            raise NotApplicable(f"{name} is {reason}")
    assert isinstance(layer, (nn.Linear, _ConvNd)) and isinstance(reader, (nn.Linear, _ConvNd))
    if reader.weight.shape[1] % layer.weight.shape[0] or getattr(reader, "groups", 1) != 1:
        raise NotApplicable(f"{reader_path} does not read the units of {path}")
    return Link(path, layer, reader_path, reader, first=False)


def _holds(root: nn.Module, module: nn.Module) -> bool:
    return any(inner is module for inner in root.modules())


def _trains(optimizer: Optimizer, layer: nn.Linear | _ConvNd) -> bool:
    return any(p is layer.weight for p in flat_params(optimizer))


class ShrinkAndPerturb(Effect):
    """Weights that were loaded are shrunk and get noise before the first step.

    The value is ``{"shrink": 0.6, "std": 0.01, "seed": k}``, see :func:`steadygrad.plasticity.shrink_and_perturb_`.
    Copies that nobody trains (target networks) get the same values. Raises :class:`NotApplicable` where no weights
    were loaded, or where they have been trained since. The weights stay when the effect is removed.
    """

    key = "shrink_and_perturb"
    order = 60

    def __init__(self, value: Any) -> None:
        self._shrink = fraction("shrink", value.get("shrink"))
        self._std, self._seed = value.get("std", 0.01), value.get("seed", 0)
        if (
            isinstance(self._std, bool)
            or not isinstance(self._std, (int, float))
            or not 0 <= self._std < math.inf
        ):
            raise NotApplicable(f"std must be finite and at least 0, got {self._std!r}")
        if isinstance(self._seed, bool) or not isinstance(self._seed, int) or self._seed < 0:
            raise NotApplicable(f"seed must be a whole number of at least 0, got {self._seed!r}")
        self._loaded = LoadedModules()
        self._done: set[int] = set()

    def install(self) -> None:
        self._loaded.install()

    def models(self, models: Models) -> None:
        new = [root for root in models.roots if id(root) not in self._done]
        loaded = [module for root in new for module in self._loaded.in_(root)]
        if not loaded and not self._done:
            raise NotApplicable("no weights were loaded: there is nothing that could have unlearned to learn")
        if any(not module.training for module in loaded):
            raise NotApplicable("a loaded model is in evaluation mode: its weights are to stay as they are")
        check_untrained(models, [p for module in loaded for p in module.parameters()])
        followers = Followers(models, [inner for module in loaded for inner in module.modules()])
        for k, module in enumerate(loaded):
            shrink_and_perturb_(module, self._shrink, self._std, self._seed + k)
        followers.follow()
        self._done |= {id(root) for root in new}

    def remove(self) -> None:
        self._loaded.remove()
