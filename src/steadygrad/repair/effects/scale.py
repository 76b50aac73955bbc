"""Weights made smaller before the first step, those of the output, of residual branches, of recurrences."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steadygrad.init.orthogonal import orthogonal_blocks_
from steadygrad.nn.recurrent import clamp_spectral_norm_
from steadygrad.repair.effects._weights import (
    Followers,
    LoadedModules,
    check_untrained,
    is_lazy,
    module_at,
    present,
    write,
)
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable


class _Scale(Effect):
    """Multiplies weights once. The value is ``{"modules": [path, ...], "factor": f}``, f finite and >= 0.

    Loaded weights are not touched, nor those that have been trained: :class:`NotApplicable`. Weights that two of the
    modules share are multiplied once. They stay as they are when the effect is removed.
    """

    order = 61
    names: ClassVar[tuple[str, ...]] = ("weight",)  # of the parameters that are multiplied

    def __init__(self, value: Any) -> None:
        self._paths = [str(path) for path in value["modules"]]
        self._factor = float(value.get("factor", 0.0))
        if not 0 <= self._factor < math.inf:
            raise NotApplicable(f"{self.key}: the factor {self._factor} is not finite and >= 0")
        self._loaded = LoadedModules()
        self._done: set[int] = set()
        self._written: set[int] = set()

    def install(self) -> None:
        self._loaded.install()

    def models(self, models: Models) -> None:
        chosen = present(models, self._paths, self._done)
        modules = [module for _, module in chosen]
        if any(is_lazy(module) for module in modules):
            raise NotApplicable(f"{self.key}: a lazy layer has no weights before its first pass")
        parameters = [p for module in modules for p in module.parameters()]
        self._loaded.check(modules)
        check_untrained(models, parameters)
        followers = Followers(models, modules)
        for path, module in chosen:
            for name in self.names:
                self._multiply(path, module, name)
        followers.follow()

    @torch.no_grad()
    def _multiply(self, path: str, module: nn.Module, name: str) -> None:
        parameter = getattr(module, name, None)
        if isinstance(parameter, Tensor) and id(module._parameters.get(name)) not in self._written:
            if module._parameters.get(name) is not None:
                self._written.add(id(parameter))
            write(module, name, parameter * self.factors(path, parameter))

    def factors(self, path: str, parameter: Tensor) -> float | Tensor:
        """What this parameter is multiplied by."""
        return self._factor

    def remove(self) -> None:
        self._loaded.remove()


class QueryKeyScale(_Scale):
    """Multiplies the weights that make queries and keys, ``{"modules": [...], "fused": [...], "factor": f}``.

    Those of ``fused`` make queries, keys and values in this order, a third of the rows each: the values' third stays.
    """

    key: ClassVar[str] = "query_key_scale"
    names: ClassVar[tuple[str, ...]] = ("weight", "in_proj_weight")

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._fused = {str(path) for path in value.get("fused", ())}

    def factors(self, path: str, parameter: Tensor) -> float | Tensor:
        if path not in self._fused:
            return self._factor
        rows = torch.full((len(parameter), *[1] * (parameter.ndim - 1)), self._factor).to(parameter)
        rows[2 * len(parameter) // 3 :] = 1.0
        return rows


class OutputScale(_Scale):
    """Small weights in the layers that make the output, so that it starts near its bias. Biases stay."""

    key = "output_scale"


class BranchScale(_Scale):
    """The last layers of residual branches made small, weight and bias; a factor of 0 leaves the skips alone.

    Source: Zhang, Dauphin & Ma (2019), https://arxiv.org/abs/1901.09321; Goyal et al. (2017),
    https://arxiv.org/abs/1706.02677, for a factor of 0.
    """

    key = "branch_scale"
    names = ("weight", "bias")


class ZeroBias(_Scale):
    """Biases start at 0. The value is ``{"modules": [path, ...]}``."""

    key = "zero_bias"
    names = ("bias",)


class _Recurrent(Effect):
    """Changes hidden-to-hidden weights once, named as in a portrait: ``rnn.weight_hh_l0``, ``cell.wh.weight``."""

    order = 60

    def __init__(self, value: Any) -> None:
        self._names = [str(name) for name in value["weights"]]
        self._loaded = LoadedModules()
        self._done: set[int] = set()

    def install(self) -> None:
        self._loaded.install()

    def models(self, models: Models) -> None:
        paths = list(dict.fromkeys(name.rpartition(".")[0] for name in self._names))
        modules = {path: module for path, module in present(models, paths, self._done)}
        for module in modules.values():
            self._loaded.check([module])
            check_untrained(models, module.parameters())
        for name in self._names:
            path, _, leaf = name.rpartition(".")
            if path not in modules:
                continue
            weight = module_at(models, path)._parameters.get(leaf)
            if weight is None or weight.dim() != 2 or weight.shape[0] % weight.shape[1]:
                raise NotApplicable(f"{name} is no weight of square blocks")
            followers = Followers(models, [modules[path]])
            with torch.no_grad():
                self._change(weight, weight.shape[0] // weight.shape[1])
            followers.follow()

    def _change(self, weight: Tensor, num_blocks: int) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        self._loaded.remove()


class OrthogonalRecurrent(_Recurrent):
    """Orthogonal hidden-to-hidden weights, gate by gate. The value is ``{"weights": [name], "gain": 1, "seed": 0}``."""

    key = "orthogonal_recurrent"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._gain = float(value.get("gain", 1.0))
        self._generator = torch.Generator().manual_seed(int(value.get("seed", 0)))

    def _change(self, weight: Tensor, num_blocks: int) -> None:
        orthogonal_blocks_(weight, num_blocks, self._gain, self._generator)


class RecurrentRadius(_Recurrent):
    """Hidden-to-hidden weights shrunk, gate by gate, to a largest singular value of at most ``radius``.

    The value is ``{"weights": [name, ...], "radius": .95}``; a block within the bound is left as it is.
    """

    key = "recurrent_radius"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._radius = float(value["radius"])
        if not 0 < self._radius < math.inf:
            raise NotApplicable(f"the radius must be positive and finite, got {self._radius}")

    def _change(self, weight: Tensor, num_blocks: int) -> None:
        clamp_spectral_norm_(weight, self._radius, num_blocks)
