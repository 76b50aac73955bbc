"""Which layers are given the batch itself, as calls of modules pass by."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from steadygrad.locating.values import storage_key, tensors_in

CHANNELS_FIRST = (_ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm)


class Entry:
    """Follows the calls of modules, from the outermost inwards. Told by global hooks."""

    def __init__(self) -> None:
        self._stack: list[nn.Module] = []
        self._fresh = False  # no layer with weights has run yet in this call of a model
        self._batch: set[Any] = set()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> bool:
        """A module is called. Whether it is a layer with weights whose first argument is data.

        Data are numbers without a history, in the memory of what the outermost module was given; and what the first
        layer with weights is given, if all that came before had none.
        """
        if not self._stack:
            self._fresh = True
            self._batch = {storage_key(t) for t in tensors_in(args) if t.grad_fn is None}
        self._stack.append(module)
        if not args or not any(True for _ in module.parameters(recurse=False)):
            return False
        first, self._fresh = self._fresh, False
        x = args[0]
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.grad_fn is not None or x.ndim < 2:
            return False
        return first or storage_key(x) in self._batch

    def leave(self, module: nn.Module) -> None:
        """The call is over, also if it raised."""
        while self._stack:  # a module that raised and was caught has left no trace
            if self._stack.pop() is module:
                break
        if not self._stack:
            self._batch = set()


def feature_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of the features in what a layer is given: 1 for images, else the last."""
    return 1 if isinstance(module, CHANNELS_FIRST) and x.ndim > 2 else -1
