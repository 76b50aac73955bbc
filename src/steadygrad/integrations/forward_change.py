"""One thing changed in the forward pass: the first layers get standardised inputs, or the model its training mode."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from steadygrad.locating.values import storage_key, tensors_in

CALLS = 10  # of a layer, whose inputs make its statistics
MIN_ROWS = 8  # before so many are seen, all columns share one mean and one deviation
FARTHEST = 10.0  # deviations: a column that is nearly constant must not make a value huge
CHANNELS_FIRST = (_ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm)


class Scaler:
    """Mean and deviation of each feature of a layer's inputs, from its first calls.

    Args:
        feature_axis: axis of the features, one mean and deviation each; those of the others are pooled.

    Example:
        >>> scale = Scaler(feature_axis=-1)
        >>> x = torch.tensor([[0.0, 500.0], [2.0, 500.0]]).repeat(4, 1)
        >>> scale(x)[:2].tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """

    def __init__(self, feature_axis: int) -> None:
        self._axis = feature_axis
        self._calls = 0
        self._rows = 0
        self._sums: tuple[Tensor, Tensor] | None = None  # of x and x^2, float64, one entry per feature

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x with its features at about mean 0 and deviation 1; a feature that does not vary keeps its scale."""
        columns = x.detach().movedim(self._axis, -1)
        if self._calls < CALLS:
            self._take(columns)
        assert self._sums is not None
        sums, squares = self._sums
        if self._rows < MIN_ROWS:
            sums, squares = sums.mean().expand_as(sums), squares.mean().expand_as(squares)
        mean = sums / max(self._rows, 1)
        deviation = (squares / max(self._rows, 1) - mean**2).clamp(min=0).sqrt()
        deviation = torch.where(deviation > 1e-6 * (1e-6 + mean.abs()), deviation, 1.0)
        scaled = ((columns - mean) / deviation).clamp(-FARTHEST, FARTHEST)
        return scaled.to(x.dtype).movedim(-1, self._axis)

    def _take(self, columns: Tensor) -> None:
        rows = columns.reshape(-1, columns.shape[-1]).double()
        rows = rows[torch.isfinite(rows).all(dim=1)]
        self._calls += 1
        self._rows += len(rows)
        new = rows.sum(0), rows.square().sum(0)
        old = self._sums
        self._sums = new if old is None else (old[0] + new[0], old[1] + new[1])


class ForwardChange:
    """Carries out what a plan says of forward passes, in every module of the process, while it is installed.

    The keys of the plan are those of :class:`steadygrad.diagnose.interventions.Intervention`.

    Inputs are scaled where they are consumed: at the layers with weights that are given the batch itself, and at the
    first such layer of a model if all that came before had no weights. Left alone are integers, inputs of one axis,
    two values or fewer, and whatever has a history.
    """

    def __init__(self, plan: Mapping[str, float]) -> None:
        self._scales = "standardise_inputs" in plan
        self._trains = "train_mode" in plan
        self._stack: list[nn.Module] = []
        self._fresh = False  # no layer with weights has run yet in this call of a model
        self._batch: set[Any] = set()
        self._scalers: weakref.WeakKeyDictionary[nn.Module, Scaler | None] = weakref.WeakKeyDictionary()
        self._put_in_training: list[nn.Module] = []
        self._handles: list[Any] = []

    def install(self) -> None:
        if self._scales or self._trains:
            self._handles = [
                register_module_forward_pre_hook(self._enter),  # type: ignore[arg-type]
                register_module_forward_hook(self._leave, always_call=True),
            ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._stack:
            self._begin(module, args)
        self._stack.append(module)
        if not self._scales or not args or not any(True for _ in module.parameters(recurse=False)):
            return None
        first, self._fresh = self._fresh, False
        x = args[0]
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.requires_grad or x.ndim < 2:
            return None
        if not (first or storage_key(x) in self._batch):
            return None
        if module not in self._scalers:
            axis = 1 if isinstance(module, CHANNELS_FIRST) and x.ndim > 2 else -1
            self._scalers[module] = Scaler(axis) if x.unique().numel() > 2 else None
        scaler = self._scalers[module]
        return None if scaler is None else (scaler(x), *args[1:])

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A call from outside of any module."""
        self._fresh = True
        self._batch = {storage_key(t) for t in tensors_in(args) if not t.requires_grad}
        if self._trains and torch.is_grad_enabled() and not module.training:
            self._put_in_training = [m for m in module.modules() if not m.training]
            for m in self._put_in_training:
                m.training = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self._stack:  # a module that raised and was caught has left no trace
            if self._stack.pop() is module:
                break
        if not self._stack:
            self._batch = set()
            for m in self._put_in_training:  # the script's own evaluation goes on as it was
                m.training = False
            self._put_in_training = []
