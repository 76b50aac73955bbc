"""Which module is being run, and what it is called."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from steadygrad.locating.values import storage_key, tensors_in
from steadygrad.probe.call_hooks import CallHooks
from steadygrad.probe.names import find_roots, named_roots, walk


class ModuleStack:
    """Follows the calls of all modules of the process while it is entered.

    Args:
        roots: module trees whose paths are to be used; the live trees of the modules that were called if empty.
    """

    def __init__(self, roots: list[nn.Module]) -> None:
        self.given = roots
        self.stack: list[nn.Module] = []
        self.called: dict[int, nn.Module] = {}  # called from outside of any module
        self.finished_model = (
            False  # one with parameters has returned; the locator takes it back for a new batch
        )
        self.models_begun = 0
        self.inputs: dict[
            int, weakref.ref[Tensor]
        ] = {}  # of those calls, by memory: their axis 0 has the samples
        self._calls = CallHooks()

    def __enter__(self) -> ModuleStack:
        self._calls.install(self._enter, self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.remove()
        self.stack.clear()

    @property
    def current(self) -> nn.Module | None:
        return self.stack[-1] if self.stack else None

    @property
    def in_loss(self) -> bool:
        """Whether one of the modules being run is a loss: torch's own, or called so and without parameters."""
        return any(_is_loss(module) for module in self.stack)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not self.stack and _has_parameters(module):
            self.called[id(module)] = module
            self.models_begun += 1
            self.inputs = {storage_key(t): weakref.ref(t) for t in tensors_in(args)}
        self.stack.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self.stack:  # a module that raised and was caught has left no trace
            if self.stack.pop() is module:
                break
        if not self.stack and _has_parameters(module):
            self.finished_model = True

    def as_given(self, tensor: Tensor) -> Tensor:
        """The input of the model that a tensor is a view of; the tensor itself if it is none."""
        given = self.inputs.get(storage_key(tensor))
        found = None if given is None else given()
        return tensor if found is None else found

    # ------------------------------------------------------------------ names
    def trees(self) -> list[tuple[str, nn.Module]]:
        """The module trees of this run with the prefixes of their names."""
        roots = self.given
        if not roots:
            called = {id(m) for top in self.called.values() for m in top.modules()}
            roots = [root for root in find_roots() if any(id(m) in called for m in root.modules())]
        return named_roots(roots)

    def path_of(self, module: nn.Module | None) -> str:
        """Dotted path of a module; "" for none, for a root, and for one that belongs to no tree."""
        if module is None:
            return ""
        for prefix, root in self.trees():
            for path, candidate in walk(root):
                if candidate is module:
                    layer = f".{prefix}{path}".partition(".parametrizations")[0]
                    return layer.strip(".")
        return ""

    def owner_of(self, tensor: Tensor) -> tuple[str, str] | None:
        """What shares its memory with the tensor: ("parameter", dotted name), ("buffer", ...), or None."""
        key = storage_key(tensor)
        for prefix, root in self.trees():
            for path, module in walk(root):
                front = prefix + path + ("." if path else "")
                for what, table in (("parameter", module._parameters), ("buffer", module._buffers)):
                    for name, held in table.items():
                        if held is not None and not held.is_meta and storage_key(held) == key:
                            return what, front + name
        return None

    def parameters(self) -> list[Tensor]:
        """Every parameter of the trees that were called."""
        tops = self.given or list(self.called.values())
        return [p for top in tops for p in top.parameters()]


def _is_loss(module: nn.Module) -> bool:
    named = type(module).__name__.lower().endswith(("loss", "criterion"))
    return issubclass(type(module), _Loss) or (named and not _has_parameters(module))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
