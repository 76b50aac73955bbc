"""``standardise_inputs``: the first layers are given data of about mean 0 and deviation 1."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from steadygrad.repair.effects._affine import Kept, kept_with
from steadygrad.repair.effects._entry import Entry, feature_axis
from steadygrad.repair.effects.effect import Effect, Models

NAME = "_steadygrad_inputs"
CALLS = 10  # of a layer, whose inputs make its statistics
MIN_ROWS = 8  # before so many are seen, all columns share one mean and one deviation
FARTHEST = 10.0  # deviations: a column that is nearly constant must not make a value huge


class StandardiseInputs(Effect):
    """``(x - mean) / std`` before the layers that are given the batch, in training and in evaluation.

    Args:
        value: ``{"modules": {path: {"mean": numbers, "std": numbers, "axis": -1}}}``, as the survey ``inputs`` finds
            them; one number for all features or one for each along ``axis``. Or 1: the layers are found and measured
            as they are called, from the first call on (:class:`Scaler`); good for a look, but no patch can do the same.

    What is given to the layer is scaled whoever calls it, so that an evaluation that calls parts of a model is right,
    and copies of the model as well. A NaN or an infinity in the data stays one.
    """

    key: ClassVar[str] = "standardise_inputs"

    def __init__(self, value: Any) -> None:
        self._live = _Live() if value == 1.0 else None
        self._kept = Kept(NAME, value) if self._live is None else None
        self._handles: list[Any] = []

    def install(self) -> None:
        if self._live is not None:
            self._handles = [
                register_module_forward_pre_hook(self._live.enter),  # type: ignore[arg-type]
                register_module_forward_hook(self._live.leave, always_call=True),
            ]
        else:
            self._handles = [register_module_forward_pre_hook(_scale)]  # type: ignore[arg-type]

    def models(self, models: Models) -> None:
        if self._kept is not None:
            self._kept.put(models)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._kept is not None:
            self._kept.take()


def _scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    kept = kept_with(module, NAME)
    x = args[0] if args else None
    if kept is None or not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    affine = kept.along(x)
    if affine is None:
        return None
    scaled = (x - affine[0]) / affine[1]
    return tuple(scaled if arg is x else arg for arg in args)  # attention is given the same thing three times


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


class _Live:
    """Scales what layers are given by what they have been given so far.

    Left alone are integers, inputs of one axis, two values or fewer, and whatever asks for a gradient.
    """

    def __init__(self) -> None:
        self._entry = Entry()
        self._scalers: weakref.WeakKeyDictionary[nn.Module, Scaler | None] = weakref.WeakKeyDictionary()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._entry.enter(module, args):
            return None
        x = args[0]
        if x.requires_grad:
            return None
        if module not in self._scalers:
            self._scalers[module] = Scaler(feature_axis(module, x)) if x.unique().numel() > 2 else None
        scaler = self._scalers[module]
        return None if scaler is None else (scaler(x), *args[1:])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._entry.leave(module)
