"""Target networks that follow the trained weights too fast: held, and let go only now and then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steadygrad._foreach import copy_grouped_
from steadygrad.guard.tensors import plainly
from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._values import count
from steadygrad.repair.effects.effect import Effect, Models, Step

Table = Mapping[str, Tensor | None]  # buffers or parameters of one module


class HoldTargets(Effect):
    """What moves and is not trained moves only once every ``value`` steps, a whole number.

    Held are the float buffers and the untrained parameters of the models, and copies of a trained module that stand
    apart and are called before the first step; not the statistics of normalisation layers. A move that the user's code
    makes, in the forward pass or in the loop, is taken back before the next step, or before the next forward pass after
    it, except in the steps 0, K, 2 K, ... of the optimizer that steps first.
    """

    key: ClassVar[str] = "hold_targets"
    order: ClassVar[int] = 5  # it must hear of steps that are skipped, or taken in the place of the user's
    eager: ClassVar[bool] = True  # its hooks count calls of modules, which compiled code leaves out

    def __init__(self, value: Any) -> None:
        self._every = count(self.key, value)
        self._steps = 0  # of the first optimizer
        self._main: Optimizer | None = None
        self._models = Models()
        self._called: dict[int, nn.Module] = {}  # from outside, before the first step
        self._held: dict[
            tuple[int, str], tuple[Table, str, Tensor]
        ] = {}  # its place, and the value that it is held at
        self._between = False  # a step is over, and nothing has run forward since
        self._depth = 0
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        if self._every > 1:
            self._handles = [
                register_module_forward_pre_hook(self._enter),  # type: ignore[arg-type]
                register_module_forward_hook(self._leave, always_call=True),
            ]

    def models(self, models: Models) -> None:
        self._models = models
        if self._every > 1:
            self._hold(models.roots)

    def before_step(self, optimizer: Optimizer) -> Step:
        self._depth = 0
        if self._every == 1:
            return "take"
        if self._main is None:
            self._main = optimizer
            self._hold(self._copies())
            self._called.clear()
        if self._steps % self._every:
            self._take_back()
        else:
            with plainly():
                pairs = self._pairs()
                copy_grouped_([kept for _, kept in pairs], [live for live, _ in pairs])
        return "take"

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self._steps += optimizer is self._main
        self._between = True

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        if self._main is None:
            self._called[id(module)] = module
        if self._between and self._steps % self._every:
            self._take_back()  # what the loop has moved since the step
        self._between = False

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _hold(self, roots: Iterable[nn.Module]) -> None:
        """Take in what is not held yet, as it is now."""
        trained = {id(p) for optimizer in self._models.optimizers for p in flat_params(optimizer)}
        for table, name in untrained(roots, trained):
            tensor = table[name]
            if tensor is not None and (id(table), name) not in self._held:
                with plainly():  # the first forward pass may be one in inference mode
                    self._held[id(table), name] = table, name, tensor.detach().clone()

    def _take_back(self) -> None:
        with plainly():
            pairs = self._pairs()
            copy_grouped_([live for live, _ in pairs], [kept for _, kept in pairs])

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """What stands in each place now, and its held value. The user may have put a new tensor there."""
        now = [(table.get(name), kept) for table, name, kept in self._held.values()]
        return [(live.detach(), kept) for live, kept in now if live is not None and live.shape == kept.shape]

    def _copies(self) -> list[nn.Module]:
        """Modules called from outside whose parameters have the shapes of a trained module's."""
        shapes = {_shapes(module) for module in self._models.modules.values()} - {()}
        inside = {id(module) for module in self._models.modules.values()}
        return [m for m in self._called.values() if id(m) not in inside and _shapes(m) in shapes]


def untrained(roots: Iterable[nn.Module], trained: set[int]) -> Iterator[tuple[Table, str]]:
    """The places of float tensors in these modules that no optimizer has.

    Left out are the statistics of norms, and the vectors of a spectral norm.
    """
    for module in (m for root in roots for m in root.modules()):
        if isinstance(module, _NormBase) or type(module).__module__.startswith("torch.nn.utils"):
            continue
        old_spectral_norm = any(name.endswith("_orig") for name in module._parameters)
        for table in ({} if old_spectral_norm else module._buffers, module._parameters):
            for name, tensor in table.items():
                if tensor is None or is_lazy(tensor) or id(tensor) in trained:
                    continue
                if tensor.is_floating_point() and tensor.layout is torch.strided:
                    yield table, name


def _shapes(module: nn.Module) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(p.shape) for p in module.parameters() if not is_lazy(p))
