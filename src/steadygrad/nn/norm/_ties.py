"""Whether a weight may become a computed one: not if it is computed already, or used in a second place."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def check_alone(module: nn.Module, names: Iterable[str]) -> None:
    """Refuse weights that have a parametrization, and tied ones: only one of their places would be changed.

    A layer does not know which model it is in, so that a tie is looked for among all modules that are alive.
    """
    for name in names:
        if parametrize.is_parametrized(module, name):
            raise ValueError(
                f"{name!r} has a parametrization already: remove it with "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r}) before"
            )
        if module._parameters.get(name) is None or _num_references(module, name) <= _LONE:
            continue
        if len(_places(module._parameters[name])) <= 1:
            continue
        gc.collect()  # a model that nobody holds any more ties nothing
        places = _places(module._parameters[name])
        if len(places) > 1:
            raise ValueError(
                f"{' and '.join(_named(places))} are one tied parameter: a parametrization on one of them would "
                f"break the tie. Leave this layer out, or untie it before: "
                f"layer.{name} = nn.Parameter(layer.{name}.detach().clone())"
            )


def _num_references(module: nn.Module, name: str) -> int:
    """To a parameter, but for the list in which torch's RNNs keep theirs once more."""
    parameter = module._parameters[name]
    listed = sum(1 for w in module.__dict__.get("_flat_weights", ()) if w is parameter)
    return sys.getrefcount(parameter) - listed


def _lone() -> int:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.empty(0)))
    return _num_references(module, "weight")


_LONE = _lone()  # nothing but its module holds it: no search is needed


def _places(parameter: Tensor | None) -> list[tuple[nn.Module, str]]:
    """Every module alive that has this very parameter, and its name there."""
    return [(m, name) for m in _modules() for name, p in m._parameters.items() if p is parameter]


def _modules() -> list[nn.Module]:
    # by type: isinstance would ask objects that stand in for others, which may do anything
    found = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
    return [m for m in found if "_parameters" in m.__dict__]


def _named(places: list[tuple[nn.Module, str]]) -> list[str]:
    """By their paths in the smallest module around all of them, by their types where there is none."""
    wanted = {id(m) for m, _ in places}
    around = [{id(m): path for path, m in root.named_modules()} for root in _modules() if root._modules]
    around = [paths for paths in around if wanted <= paths.keys()]
    if not around:
        return [f"{type(m).__name__}.{name}" for m, name in places]
    paths = min(around, key=len)
    return sorted(f"{paths[id(m)]}.{name}".removeprefix(".") for m, name in places)
