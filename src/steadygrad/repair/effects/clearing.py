"""A training loop that clears its gradients between the backward pass and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import GeneratorType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad
from torch.optim import Optimizer

from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._cleared import Cleared, Lost
from steadygrad.repair.effects._replaced import Replaced
from steadygrad.repair.effects.effect import Effect, NotApplicable, Step


class ClearAfterStep(Effect):
    """A ``zero_grad`` that leaves a step without any gradient is put off until behind that step; value 1.

    As if the line stood behind ``optimizer.step()``: clipping and unscaling before the step have the gradients too, and
    passes that are gathered for one step add up. It counts as such a ``zero_grad`` if it comes between a backward pass
    and the step, and no other pass has filled the gradients since. An optimizer is left alone from its first step on
    that has gradients of its own, and so are gradients that are left over from a pass with which another optimizer
    has taken such a step. Calls inside a step, those of a closure that is evaluated again, are left as they are.
    """

    key: ClassVar[str] = "clear_after_step"
    order: ClassVar[int] = 4  # before whatever looks at the gradients of a step

    def __init__(self, value: Any) -> None:
        if value != 1:
            raise NotApplicable(f"clear_after_step is 1 or not there, got {value!r}: take the key out for 0")
        self._cleared = Cleared(keep=True)
        self._replaced = Replaced()
        self._done: list[Lost] = []

    def install(self) -> None:
        self._cleared.install()
        for name in ("unscale_", "_check_inf_per_device"):
            self._replaced.put(GradScaler, name, self._unscaling)
        self._replaced.put(GradScaler, "update", self._updating)
        for owner in (clip_grad, torch.nn.utils):
            for name in ("clip_grad_norm_", "clip_grad_value_"):
                self._replaced.put(owner, name, self._clipping)

    def remove(self) -> None:
        self._replaced.remove()
        self._cleared.remove()

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self._cleared.passing()

    def before_step(self, optimizer: Optimizer) -> Step:
        with torch.no_grad():
            self._done = self._cleared.stepping(optimizer)
            for lost in self._done:
                lost.put_back()
        return "take"

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        with torch.no_grad():
            self._cleared.settle(self._done)
        self._done = []

    def undo_step(self) -> None:
        self._cleared.stepped()

    # ------------------------------------------------------------------ what else uses gradients before a step
    def _used(self, params: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for lost in self._cleared.of(params):
                lost.put_back()

    def _unscaling(self, original: Any) -> Callable[..., Any]:
        def unscale(scaler: GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._used(flat_params(optimizer))
            return original(scaler, optimizer, *args, **kwargs)

        return unscale

    def _updating(self, original: Any) -> Callable[..., Any]:
        def update(scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                self._cleared.settle(self._cleared.put_back())  # of steps that the scaler has left out
            return original(scaler, *args, **kwargs)

        return update

    def _clipping(self, original: Any) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            self._used(params)
            if isinstance(parameters, GeneratorType):  # an empty one is warned of
                parameters = (p for p in params)
            elif not isinstance(parameters, Tensor):
                parameters = params
            return original(parameters, *args, **kwargs)

        return clip
