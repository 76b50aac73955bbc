"""The torch calls of the user's own first training pass, recorded as a graph while they are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.init._calls import CONTRACTIONS
from steadygrad.init._trace import Graph, Node, Recorder, _on_leave, tensors_in
from steadygrad.locating.frames import Site, current_site
from steadygrad.probe.call_hooks import CallHooks
from steadygrad.probe.names import find_compiled
from steadygrad.repair.effects.effect import Models

MAX_NODES = 50_000  # a longer pass is not recorded
FLAT = frozenset(  # calls of which it matters where they stand
    """
    relu relu_ relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh tanh_ sigmoid sigmoid_ logsigmoid
    hardtanh hardsigmoid hardswish softmax log_softmax
    """.split()
)


class _Parameters:
    """All models as one: what a :class:`Recorder` asks a model."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        for path, module in self._models.modules.items():
            for name, parameter in module._parameters.items():
                if parameter is not None and not isinstance(parameter, nn.parameter.UninitializedParameter):
                    yield f"{path}.{name}".removeprefix("."), parameter


class _Onlooker(Recorder):
    """A recorder of which the user never feels an error."""

    def __init__(self, models: Models) -> None:
        super().__init__(_Parameters(models))  # type: ignore[arg-type]
        self.broken = False
        self.sites: dict[Node, Site] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.broken:
            try:
                self._look(func, args, kwargs, out)
            except Exception:  # noqa: BLE001 - the user's pass goes on as if nobody had looked
                self.broken = True
        return out

    def _look(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = getattr(func, "__name__", "")
        if name in CONTRACTIONS:  # data that came by keyword, or from an attribute
            first = next(tensors_in((args, kwargs)), None)
            if first is not None and first.grad_fn is None and self._origin(first) is None:
                self.add(first, "input")
        before = len(self.nodes)
        self.record(func, args, kwargs, out)
        if name in FLAT and len(self.nodes) > before:
            self.sites[self.nodes[-1]] = current_site()
        self.broken = len(self.nodes) > MAX_NODES


class Recording:
    """Records every pass with gradients through trained models, until :meth:`end`.

    Compiled models are not recorded: torch modes do not see into them. Call :meth:`begin` before a model runs.
    """

    def __init__(self) -> None:
        self._recorder: _Onlooker | None = None
        self._paths: dict[int, str] = {}
        self._stack: list[nn.Module] = []
        self._on = False
        self._calls = CallHooks()
        self._thread = threading.get_ident()

    def install(self) -> None:
        self._calls.install(self._enter, self._leave)

    def begin(self, models: Models) -> None:
        """These models are about to run. Those known before are recorded anew."""
        if self._stack or not self._calls.installed or find_compiled():
            return
        self._paths = {id(module): path for path, module in models.modules.items()}
        self._recorder = _Onlooker(models)

    def end(self) -> tuple[Graph, dict[Node, Site]] | None:
        """What was recorded, and where the activations were called; None if nothing was."""
        recorder, self._recorder = self._recorder, None
        self.remove()
        if recorder is None or recorder.broken or not recorder.nodes:
            return None
        for node in recorder.nodes:
            node.tensor = None
        return Graph(recorder.nodes, recorder.param_names), recorder.sites

    def remove(self) -> None:
        self._calls.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._recorder is None or threading.get_ident() != self._thread:
            return
        self._stack.append(module)
        if len(self._stack) == 1 and id(module) in self._paths and torch.is_grad_enabled():
            self._recorder.__enter__()
            self._on = True
            for tensor in tensors_in(args):
                if tensor.grad_fn is None and self._recorder.node_of(tensor) is None:
                    self._recorder.add(tensor, "input")
        if self._on:
            path = self._paths.get(id(module), self._recorder.running[-1][0])
            self._recorder.running.append((path, len(self._recorder.nodes)))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._stack:  # a module that raised and was caught may have left no trace
            last = self._stack.pop()
            if self._on and self._recorder is not None:
                path, start = self._recorder.running.pop()
                if last is module and not self._recorder.broken:
                    self._tell(module, path, (args, {}), out, start)
            if last is module:
                break
        if not self._stack and self._on and self._recorder is not None:
            self._on = False
            self._recorder.__exit__(None, None, None)

    def _tell(self, module: nn.Module, path: str, given: Any, out: Any, start: int) -> None:
        assert self._recorder is not None
        try:
            _on_leave(self._recorder, module, path, given, out, start)
        except Exception:  # noqa: BLE001 - as above
            self._recorder.broken = True
