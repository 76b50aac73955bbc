"""``train_mode``: forward passes that are differentiated run in training mode, whatever mode the script has left on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from steadygrad.probe.call_hooks import CallHooks
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable


class TrainMode(Effect):
    """As if ``model.train()`` stood before each forward pass that has gradients, and the user's mode after it.

    Args:
        value: 1.

    Only models that an optimizer trains; evaluation under ``no_grad`` is left as it is.
    """

    key: ClassVar[str] = "train_mode"
    eager: ClassVar[bool] = True  # dynamo would trace our hooks into the model's code

    def __init__(self, value: Any) -> None:
        if value != 1:
            raise NotApplicable(f"train_mode is 1 or not there, got {value!r}")
        self._trained: set[nn.Module] = set()
        self._stack: list[nn.Module] = []
        self._changed: list[nn.Module] = []
        self._calls = CallHooks()

    def install(self) -> None:
        self._calls.install(self._enter, self._leave)

    def models(self, models: Models) -> None:
        self._trained = set(models.modules.values())

    def remove(self) -> None:
        self._calls.remove()
        self._give_back()

    def _enter(self, module: nn.Module, args: Any) -> None:
        outermost = not self._stack
        self._stack.append(module)
        if not outermost or module.training or module not in self._trained or not torch.is_grad_enabled():
            return
        self._changed = [m for m in module.modules() if not m.training]
        for m in self._changed:
            m.training = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self._stack:  # a module that raised and was caught has left no trace
            if self._stack.pop() is module:
                break
        if not self._stack:
            self._give_back()

    def _give_back(self) -> None:
        for m in self._changed:
            m.training = False
        self._changed = []
