"""Changes of a model's structure that a recipe makes: what may be changed, and the way back.

Only plain things are changed. A module that is frozen, tied, hooked, parametrised or of a subclass is what its
owner made of it, and stays.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LEAST = 2  # blocks in a row: a single one gains nothing from a skip


@dataclass
class Edits:
    """What was changed so far, in words, and the way back."""

    model: nn.Module
    changes: list[str] = field(default_factory=list)
    _undo: list[Callable[[], Any]] = field(default_factory=list)

    def undo(self) -> None:
        """The module tree as it was."""
        while self._undo:
            self._undo.pop()()

    def replace(self, path: str, new: nn.Module, change: str) -> None:
        """Put a module in the place of another; at "" in the place of the model."""
        self.changes.append(f"{named(path)}: {change}")
        if not path:
            root = self.model
            self.model = new
            self._undo.append(lambda: setattr(self, "model", root))
            return
        old = self.model.get_submodule(path)
        for owner, name in [
            (m, n) for m in self.model.modules() for n, child in m._modules.items() if child is old
        ]:
            owner._modules[name] = new  # wherever it is: the places share it, before and after
            self._undo.append(partial(owner._modules.__setitem__, name, old))

    def children(self, owner: nn.Module, children: OrderedDict[str, nn.Module], change: str) -> None:
        """Give a Sequential other children."""
        before = owner._modules
        owner._modules = children  # type: ignore[assignment]
        self.changes.append(change)
        self._undo.append(lambda: setattr(owner, "_modules", before))

    def attribute(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute, which may be None or a module before and after."""
        before = getattr(owner, name)
        setattr(owner, name, value)

        def undo() -> None:
            delattr(owner, name)  # a module leaves its place among the modules, or None would stay there
            setattr(owner, name, before)

        self._undo.append(undo)


class Places:
    """In how many places of a model a module or a parameter is."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._count: Counter[Any] = Counter(child for m in modules for child in m._modules.values())
        self._count.update(p for m in modules for p in m._parameters.values())

    def kept(self, module: nn.Module, shared: bool = False) -> str | None:
        """Why a module must stay as it is; None if it may be changed. ``shared``: it may be in several places."""
        if any(getattr(module, hooks) for hooks in HOOKS):
            return "hooked"
        if not all(p.requires_grad for p in module.parameters()):
            return "frozen"
        if not shared and self._count[module] > 1 and any(True for _ in module.parameters()):
            return "used in several places"
        if any(self._count[p] > 1 for p in module.parameters()):
            return "tied"
        return None


def named(path: str) -> str:
    return path or "the model"


def fresh(norm: nn.Module) -> nn.Module:
    """Another norm of the same settings, as it was when it was built."""
    without_hooks = {id(getattr(norm, hooks)): OrderedDict[int, Any]() for hooks in HOOKS}
    new = copy.deepcopy(norm, without_hooks)  # type: ignore[arg-type]
    new.reset_parameters()  # type: ignore[operator]
    return new.requires_grad_(True)
