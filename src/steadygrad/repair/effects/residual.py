"""Residual branches behind a learned factor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.repair.effects._added import AddedParameters
from steadygrad.repair.effects._weights import present
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable

GATE = "residual_gate"  # name of the parameter


class ResidualGate(Effect):
    """The output of a branch's last layer times one learned number.

    The value is ``{"modules": [path, ...], "start": 1}``. A start of 1 leaves the function of the model as it is,
    bit for bit, whatever its weights have learned; 0 begins with the skips alone (SkipInit). The numbers are trained
    by the optimizer that trains the layer, whose state of all else stays.

    Source: De & Smith (2020), https://arxiv.org/abs/2002.10444
    """

    key = "residual_gate"
    order = 72

    def __init__(self, value: Any) -> None:
        self._paths = [str(path) for path in value["modules"]]
        self._start = float(value.get("start", 1.0))
        if not math.isfinite(self._start):
            raise NotApplicable(f"a gate cannot start at {self._start}")
        self._done: set[int] = set()
        self._hooks: list[Any] = []
        self._added = AddedParameters()

    def models(self, models: Models) -> None:
        for path, module in present(models, self._paths, self._done):
            if GATE in module._parameters:
                raise NotApplicable(f"{path} has a {GATE} of its own")
            like = next((p for p in module.parameters() if p.is_floating_point()), None)
            if like is None or isinstance(like, nn.parameter.UninitializedParameter):
                raise NotApplicable(f"{path} is no layer with weights")
            value = torch.full((), self._start, dtype=like.dtype, device=like.device)
            self._added.register(models, module, GATE, value)
            self._hooks.append(module.register_forward_hook(_multiply))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._added.remove()


def _multiply(module: nn.Module, args: Any, output: Any) -> Any:
    gate = module._parameters[GATE]
    assert gate is not None
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (output[0] * gate, *output[1:])
    return output * gate if isinstance(output, Tensor) else output
