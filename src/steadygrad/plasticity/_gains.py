"""Measure what each layer does to signal and gradient in the ordinary passes of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Recurrent = nn.RNNBase | nn.RNNCellBase


class Meter:
    """Hooks on modules that note the size of what goes into each, and of the gradient that comes out of it there."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.listening = False
        self._inputs: list[Tensor | None] = [None] * len(self.modules)
        self._gradients: list[Tensor | None] = [None] * len(self.modules)
        self._handles = [m.register_forward_pre_hook(self._hook(i)) for i, m in enumerate(self.modules)]

    def _hook(self, index: int) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self.listening or not args or not isinstance(args[0], Tensor):
                return
            self._inputs[index] = _rms(args[0].detach())
            self._gradients[index] = None  # those of a pass before
            if args[0].requires_grad:
                args[0].register_hook(lambda grad: self._gradients.__setitem__(index, _norm(grad)))

        return note

    def read(self) -> tuple[list[float], list[float]]:
        """rms of the inputs, and the norms of their gradients; nan where nothing came by. Forgets them."""
        found = _numbers([*self._inputs, *self._gradients])
        self._inputs = [None] * len(self.modules)
        self._gradients = [None] * len(self.modules)
        return found[: len(self.modules)], found[len(self.modules) :]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class TimeMeter:
    """The same for a recurrence: sizes of the state and of the gradient at each of its steps."""

    def __init__(self, module: Recurrent) -> None:
        self.module = module
        self.listening = False
        self.steps = 0  # of the sequence that was read last
        self._states: list[Tensor] = []
        self._gradients: dict[int, Tensor] = {}
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after),
        ]

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self.listening:
            return None
        if isinstance(module, nn.RNNCellBase):
            state = args[1] if len(args) > 1 else kwargs.get("hx")
            state = state[0] if isinstance(state, tuple) else state
            if state is not None and state.requires_grad:
                step = len(self._states)
                state.register_hook(lambda grad: self._gradients.__setitem__(step, _rms(grad)))
            return None
        if not isinstance(args[0], Tensor):
            raise ValueError(
                f"{type(module).__name__} was given a {type(args[0]).__name__}: its steps can be measured in a padded "
                "tensor only"
            )
        data = _differentiable(args[0])
        self._states, self._gradients = [], {}
        if data.requires_grad:
            data.register_hook(self._through_time)
        return (data, *args[1:]), kwargs

    def _through_time(self, grad: Tensor) -> None:
        rows = _rms_of_steps(grad.detach(), self._time(grad))
        self._gradients = dict(enumerate(rows))

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        if not self.listening:
            return
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(module, nn.RNNCellBase):
            self._states.append(_rms(out.detach()))
        else:
            self._states = list(_rms_of_steps(out.detach(), self._time(out)))

    def _time(self, tensor: Tensor) -> int:
        return 1 if tensor.dim() == 3 and getattr(self.module, "batch_first", False) else 0

    def read(self) -> tuple[float, float, float]:
        """Slope of log10 rms of the state over the steps, of the gradient back over them, and the state's rms.

        A slope is 0 where there are less than two steps with a value to compare.
        """
        states = _numbers(self._states)
        gradients = _numbers([self._gradients[t] for t in sorted(self._gradients)])
        self._states, self._gradients = [], {}
        self.steps = len(states)
        size = math.sqrt(sum(s * s for s in states) / len(states)) if states else 0.0
        return _slope(states), -_slope(gradients), size

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _differentiable(data: Tensor) -> Tensor:
    """The same values, with a gradient even where they are plain data: so that there is one at each step."""
    plain = data.is_floating_point() and not data.requires_grad and torch.is_grad_enabled()
    return data.detach().requires_grad_() if plain else data


def _norm(tensor: Tensor) -> Tensor:
    # float64: the gradient of a net that explodes is beyond the square root of float32's largest number
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


def _rms(tensor: Tensor) -> Tensor:
    return _norm(tensor) / math.sqrt(max(tensor.numel(), 1))


def _rms_of_steps(tensor: Tensor, time: int) -> Tensor:
    rows = tensor.movedim(time, 0).flatten(1)
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) / math.sqrt(max(rows.shape[1], 1))


def _numbers(values: Sequence[Tensor | None]) -> list[float]:
    present = [v for v in values if v is not None]
    if not present:
        return [math.nan] * len(values)
    found = iter(torch.stack([v.to(present[0].device) for v in present]).tolist())  # host sync
    return [math.nan if v is None else next(found) for v in values]


def _slope(values: Sequence[float]) -> float:
    """Of log10 over the index, by least squares; nan if a value is inf or nan, 0 with nothing to compare."""
    if not all(map(math.isfinite, values)):
        return math.nan
    points = [(t, math.log10(v)) for t, v in enumerate(values) if v > 0]
    if len(points) < 2:
        return 0.0
    centre = sum(t for t, _ in points) / len(points)
    return sum((t - centre) * v for t, v in points) / sum((t - centre) ** 2 for t, _ in points)
