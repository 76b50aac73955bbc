"""What the effects on weights have in common: which may be written, how, and who must follow."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.probe.names import find_roots, flat_params
from steadygrad.repair.effects.effect import Models, NotApplicable


def module_at(models: Models, path: str) -> nn.Module:
    """The module of this path.

    Raises:
        NotApplicable: there is none; the script has changed since the plan was made.
    """
    module = models.modules.get(path)
    if module is None:
        raise NotApplicable(f"the models of this run have no module {path!r}")
    return module


def present(models: Models, paths: Iterable[str], done: set[int]) -> list[tuple[str, nn.Module]]:
    """The modules of these paths that are not yet ``done``, which they now are.

    Models may come one by one, each with its optimizer. While some are still to come, a path may lead nowhere.

    Raises:
        NotApplicable: nothing of the plan is here, and nothing was before.
    """
    paths = list(paths)
    here = [(path, models.modules[path]) for path in paths if path in models.modules]
    if not here and not done:
        module_at(models, paths[0] if paths else "")
    new = [(path, module) for path, module in here if id(module) not in done]
    done |= {id(module) for _, module in new}
    return new


def is_lazy(module: nn.Module) -> bool:
    return any(p is not None and _lazy(p) for p in module._parameters.values())


def is_parametrised(module: nn.Module, name: str = "weight") -> bool:
    return name in getattr(module, "parametrizations", {})


@torch.no_grad()
def write(module: nn.Module, name: str, values: Tensor) -> None:
    """Give a parameter new values, through its parametrisation if it has one."""
    if is_parametrised(module, name):
        setattr(module, name, values)  # in place it would have no effect
    else:
        getattr(module, name).copy_(values)


def counterparts(models: Models) -> dict[int, list[nn.Module]]:
    """The parts of copies that nobody trains (target networks), by the id of the trained module that they stand for.

    A copy is a module of the same class with the same modules in it, and equal parameters.
    """
    trained = {id(p) for optimizer in models.optimizers for p in flat_params(optimizer)}

    def learns(module: nn.Module) -> bool:
        return any(id(p) in trained for p in module.parameters())

    originals = [module for module in models.modules.values() if learns(module)]
    found: dict[int, list[nn.Module]] = {}
    fronts = list(find_roots())
    while fronts:
        copy = fronts.pop()
        if learns(copy):
            fronts += copy.children()
            continue
        original = next((module for module in originals if _is_same(module, copy)), None)
        if original is not None:
            for own, other in zip(original.modules(), copy.modules(), strict=True):
                found.setdefault(id(own), []).append(other)
    return found


def _is_same(own: nn.Module, other: nn.Module) -> bool:
    if type(own) is not type(other) or not any(True for _ in own.parameters()):
        return False
    if [(n, type(m)) for n, m in own.named_modules()] != [(n, type(m)) for n, m in other.named_modules()]:
        return False
    pairs = list(zip(own.parameters(), other.parameters(), strict=False))
    return all(
        a.shape == b.shape and torch.equal(a.to(b), b) for a, b in pairs if not _lazy(a) and not _lazy(b)
    )


def _lazy(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def tied(models: Models) -> set[int]:
    """The ids of the parameters that stand in more than one place."""
    distinct = {id(module): module for module in models.modules.values()}.values()
    count = Counter(id(p) for module in distinct for p in module._parameters.values() if p is not None)
    return {key for key, times in count.items() if times > 1}


def check_untrained(models: Models, parameters: Iterable[Tensor]) -> None:
    """Raise :class:`NotApplicable` if an optimizer has already worked on one of these."""
    mine = {id(p) for p in parameters}
    for optimizer in models.optimizers:
        if any(id(p) in mine and optimizer.state.get(p) for p in flat_params(optimizer)):
            raise NotApplicable("these weights have been trained already: new ones would lose what they know")


class LoadedModules:
    """Remembers the modules whose ``load_state_dict`` was called: their weights are not fresh."""

    def __init__(self) -> None:
        self._loaded: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._own: Callable[..., Any] | None = None
        self._wrapper: Callable[..., Any] | None = None

    def install(self) -> None:
        own = nn.Module.load_state_dict
        loaded = self._loaded

        @functools.wraps(own)
        def load_state_dict(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            keys = own(module, *args, **kwargs)
            loaded.add(module)
            return keys

        self._own, self._wrapper = own, load_state_dict
        nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        if self._own is not None and nn.Module.load_state_dict is self._wrapper:
            nn.Module.load_state_dict = self._own  # type: ignore[method-assign]
        self._own = self._wrapper = None

    def in_(self, root: nn.Module) -> list[nn.Module]:
        """The parts of a model that were loaded and are trained, none inside another."""
        if not any(p.requires_grad for p in root.parameters()):
            return []
        if root in self._loaded:
            return [root]
        return [module for child in root.children() for module in self.in_(child)]

    def check(self, modules: Iterable[nn.Module]) -> None:
        """Raise :class:`NotApplicable` if one of these modules lies in a model that was loaded."""
        loaded = {id(inner) for module in self._loaded for inner in module.modules()}
        if any(id(module) in loaded for module in modules):
            raise NotApplicable(
                "these weights were loaded from a checkpoint: new ones would lose what they know"
            )


class Followers:
    """Copies of a model's weights that nobody trains: target networks, averages. They are to stay copies.

    A module is a copy if it has the same parameters as a trained one, of the same values, and not constants alone.

    Args:
        models: that are trained.
        modules: whose parameters are about to change.
    """

    def __init__(self, models: Models, modules: Iterable[nn.Module]) -> None:
        trained = {id(p) for optimizer in models.optimizers for p in flat_params(optimizer)}
        others = [
            module
            for root in find_roots()
            for module in root.modules()
            if module._parameters and not any(id(p) in trained for p in module._parameters.values())
        ]
        self._pairs: list[tuple[Tensor, weakref.ref[Tensor]]] = []
        for own in modules:
            for other in others:
                if other is not own and _is_copy(own, other):
                    pairs = zip(own._parameters.values(), other._parameters.values(), strict=True)
                    self._pairs += [(a, weakref.ref(b)) for a, b in pairs if a is not None and b is not None]

    @torch.no_grad()
    def follow(self) -> None:
        """Copy the new values along."""
        for own, reference in self._pairs:
            if (other := reference()) is not None:
                other.copy_(own)


def _is_copy(own: nn.Module, other: nn.Module) -> bool:
    if own._parameters.keys() != other._parameters.keys():
        return False
    varies = False
    for a, b in zip(own._parameters.values(), other._parameters.values(), strict=True):
        if a is None or b is None or a.shape != b.shape:
            if a is not b:
                return False
        elif a.numel():
            if not torch.equal(a.to(b), b):
                return False
            varies |= bool(a.min() < a.max())
    return varies
