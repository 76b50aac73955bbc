"""Another function in the place of an activation, or none."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from steadygrad.locating.frames import current_site
from steadygrad.repair.effects._weights import counterparts, present
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable

CALLED = {  # torch's function, by the name that it has as a module
    "relu": "ReLU",
    "relu_": "ReLU",
    "relu6": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanh": "Tanh",
    "tanh_": "Tanh",
    "sigmoid": "Sigmoid",
    "sigmoid_": "Sigmoid",
    "logsigmoid": "LogSigmoid",
    "hardtanh": "Hardtanh",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
}
REPLACEMENTS: dict[str, type[nn.Module]] = {
    "LeakyReLU": nn.LeakyReLU,
    "GELU": nn.GELU,
    "SELU": nn.SELU,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
}
Call = tuple[str, int, str]  # file name, line, kind


class ActivationSwap(Effect):
    """Other activations between layers, in training and in evaluation.

    The value is ``{"to": "LeakyReLU", "modules": [path, ...], "calls": [{"file", "line", "kind"}, ...]}``, ``to`` a
    key of :data:`REPLACEMENTS`. Modules keep their place and their class: their forward alone is another. Calls are
    those of that kind, made on that line while a model runs; the file's name counts, not its folder. Copies that
    nobody trains (target networks) follow.

    Neither weights nor the random numbers of the run change. :meth:`remove` gives the old functions back.
    """

    key = "activation"
    order = 70
    eager = True

    def __init__(self, value: Any) -> None:
        self._prepare(value["to"], value.get("modules", ()), value.get("calls", ()))

    def _prepare(self, to: str, modules: Iterable[str], calls: Iterable[Mapping[str, Any]]) -> None:
        if to not in REPLACEMENTS:
            raise NotApplicable(f"{to!r} is no activation to change to: use one of {', '.join(REPLACEMENTS)}")
        self._new = REPLACEMENTS[to]()
        self._paths = [str(path) for path in modules]
        self._done: set[int] = set()
        self._changed: list[tuple[nn.Module, Any]] = []  # with the forward that somebody had put on it
        lines = {(os.path.basename(c["file"]), int(c["line"]), str(c["kind"])) for c in calls}
        self._inside = _Inside(_Swap(lines, self._new)) if lines else None

    def install(self) -> None:
        if self._inside is not None:
            self._inside.install()

    def models(self, models: Models) -> None:
        if self._inside is not None:
            self._inside.known |= {id(module) for module in models.modules.values()}
            self._inside.known |= {id(copy) for found in counterparts(models).values() for copy in found}
        if not self._paths:
            return
        copies = counterparts(models)
        for _, module in present(models, self._paths, self._done):
            for same in (module, *copies.get(id(module), ())):
                self._done.add(id(same))
                self._changed.append((same, same.__dict__.get("forward")))
                # A method of a module, which can be pickled and copied with the model.
                same.__dict__["forward"] = self._new.forward

    def remove(self) -> None:
        if self._inside is not None:
            self._inside.remove()
        for module, before in reversed(self._changed):
            module.__dict__.pop("forward", None)
            if before is not None:
                module.__dict__["forward"] = before
        self._changed = []


class RemoveOutputActivation(ActivationSwap):
    """No activation at the output, where the loss has one of its own or the targets lie beyond its range.

    The value is ``{"modules": [path, ...], "calls": [{"file", "line", "kind"}, ...]}``.
    """

    key = "remove_output_activation"

    def __init__(self, value: Any) -> None:
        self._prepare("Identity", value.get("modules", ()), value.get("calls", ()))


class _Swap(TorchFunctionMode):
    """Calls of these kinds on these lines go to another function."""

    def __init__(self, lines: set[Call], new: nn.Module) -> None:
        super().__init__()
        self._lines, self._new = lines, new
        kinds = {kind for _, _, kind in lines}
        self._names = {name for name, kind in CALLED.items() if kind in kinds}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        x = args[0] if args else kwargs.get("input")
        if name not in self._names or not isinstance(x, Tensor) or not self._is_meant(CALLED[name]):
            return func(*args, **kwargs)
        in_place = name.endswith("_") or kwargs.get("inplace", False) or any(a is True for a in args[1:])
        return x.copy_(self._new(x.clone())) if in_place else self._new(x)

    def _is_meant(self, kind: str) -> bool:
        site = current_site()
        return (os.path.basename(site.path), site.line, kind) in self._lines


class _Inside:
    """A torch mode in force while one of the ``known`` modules runs, whichever is called first from outside.

    Within a call the user's own modes open and close properly; around a whole training they need not.
    """

    def __init__(self, mode: TorchFunctionMode) -> None:
        self.known: set[int] = set()
        self._mode = mode
        self._stack: list[nn.Module] = []
        self._on = False
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def install(self) -> None:
        self._handles = [
            register_module_forward_pre_hook(self._enter),  # type: ignore[arg-type]
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._on:
            self._close()
        self._stack = []

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if not self._stack and id(module) in self.known:
            self._mode.__enter__()
            self._on = True
        self._stack.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._stack and self._stack.pop() is not module:  # a module that raised may have left no trace
            pass
        if not self._stack and self._on:
            self._close()

    def _close(self) -> None:
        self._on = False
        if torch.overrides._get_current_function_mode() is self._mode:
            self._mode.__exit__(None, None, None)
