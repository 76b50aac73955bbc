"""Survey ``inputs``: which layers are given the data, and how large it is."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steadygrad.probe.call_hooks import CallHooks
from steadygrad.repair.effects._entry import Entry, feature_axis
from steadygrad.repair.survey.by_layer import ByLayer

CALLS = 64  # of a layer in training, whose inputs are measured
MAX_ELEMENTS = 2**20  # kept of them
MAX_FEATURES = 512  # of more, all together have one mean and deviation
ODD_POSITION = 30.0  # times the usual size of a position: it has a unit of its own
MIN_SAMPLES = 32  # for a mean and a deviation of every position
OUTLIER = 20.0  # times the median row: left out of the statistics
FARTHEST = 10.0  # deviations that a value may lie from its mean: a pixel that is hardly ever lit


class Inputs(ByLayer["_Seen"]):
    """What the layers with weights are given that take the batch, over the first training batches.

    ``found()``: ``{"modules": {path: {"mean", "std", "axis", "rms", "ratio"}}}``, with ``rms`` of all values and
    ``ratio`` of the largest feature to the smallest (:func:`unequal`). Left out are integers, two distinct values or
    fewer, and layers that are also given what the model has computed.
    """

    key: ClassVar[str] = "inputs"

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self._entry = Entry()
        self._calls = CallHooks()

    def install(self) -> None:
        self._calls.install(self._enter, self._leave)

    def remove(self) -> None:
        self._calls.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        raw = self._entry.enter(module, args)
        if not raw and module not in self._seen or not torch.is_grad_enabled():
            return
        seen = self._seen.get(module)
        if seen is None:
            seen = self._seen[module] = _Seen(feature_axis(module, args[0]))
        if not raw:
            seen.mixed = True
        else:
            seen.take(args[0])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._entry.leave(module)


class _Seen:
    """What one layer has been given."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.mixed = False
        self._calls = 0
        self._room = MAX_ELEMENTS
        self._rows: list[Tensor] = []  # [samples, features, values]

    @torch.no_grad()
    def take(self, x: Tensor) -> None:
        self._calls += 1
        if self._calls > CALLS or self._room <= 0:
            return
        features = (
            x.detach().movedim(self.axis, 1) if self.axis == 1 else x.detach().flatten(0, -2).unsqueeze(-1)
        )
        rows = (
            features.flatten(2)[: max(1, self._room // max(1, features[0].numel()))]
            if len(features)
            else features
        )
        self._room -= rows.numel()
        self._rows.append(rows.to("cpu", torch.float64, copy=True))  # host sync

    def facts(self) -> dict[str, Any] | None:
        """None if there is nothing to standardise."""
        if self.mixed or not self._rows or len({rows.shape[1] for rows in self._rows}) > 1:
            return None
        if self.axis == 1 and (positions := self._positions()) is not None:
            return _statistics(positions) | {"axis": 0}
        columns = [rows.movedim(1, 2).flatten(0, 1) for rows in self._rows]
        sizes = [rows.abs().flatten(1).amax(1) for rows in self._rows if rows.numel()]
        size = torch.cat(sizes) if sizes else torch.zeros(0)
        limit = OUTLIER * size[size.isfinite()].median() if bool(size.isfinite().any()) else torch.zeros(())
        kept = [
            values[(rows.abs().flatten(1).amax(1) <= limit).repeat_interleave(rows.shape[2])]
            for rows, values in zip(self._rows, columns, strict=True)
            if rows.numel()
        ]
        values = torch.cat(kept) if kept else torch.zeros(0, 1)
        if len(values) < 2 or values.unique().numel() <= 2:
            return None
        return _statistics(values) | {"axis": self.axis}

    def _positions(self) -> Tensor | None:
        """[samples, positions] if some positions of a sample are far larger than most: a pixel in other units."""
        if (
            len({rows.shape[1:] for rows in self._rows}) > 1
            or not len(self._rows[0])
            or self._rows[0][0].numel() > MAX_FEATURES
        ):
            return None
        values = torch.cat(self._rows).flatten(1)
        values = values[values.isfinite().all(1)]
        if len(values) < MIN_SAMPLES:
            return None
        sizes = values.square().mean(0).sqrt()
        usual = sizes[sizes > 0].median() if bool((sizes > 0).any()) else sizes.max()
        return values if bool(sizes.max() > ODD_POSITION * usual) else None


def _statistics(values: Tensor) -> dict[str, Any]:
    """Of [rows, features], float64."""
    rms = float(values.square().mean().sqrt())
    ratio = unequal(values.abs().amax(0))
    pooled = values.shape[1] > MAX_FEATURES or len(values) < 8
    if pooled:
        values = values.reshape(-1, 1)
    mean, std = values.mean(0), values.std(0)
    floor = torch.maximum((values - mean).abs().amax(0) / FARTHEST, 1e-6 * mean.abs())
    overall = float((values - mean).square().mean().sqrt()) or 1.0
    std = torch.where(std > 1e-6 * (1e-6 + mean.abs()), torch.maximum(std, floor), overall)
    numbers = {"mean": _rounded(mean), "std": _rounded(std)}
    return numbers | {"rms": rounded(rms), "ratio": rounded(ratio)}


def unequal(sizes: Tensor) -> float:
    """How far the sizes of columns lie apart, the smallest and the largest tenth left out: dark corners of images.

    Example:
        >>> unequal(torch.tensor([1.0, 2.0, 400.0]))
        400.0
    """
    sizes = sizes[sizes > 0].sort().values
    edge = (len(sizes) - 1) // 10
    return float(sizes[len(sizes) - 1 - edge] / sizes[edge]) if len(sizes) else 1.0


def _rounded(values: Tensor) -> float | list[float]:
    numbers = [rounded(v) for v in values.tolist()]
    return numbers[0] if len(numbers) == 1 else numbers


def rounded(value: float) -> float:
    """To six digits: a plan is read by people, and a patch that is made of it has the same numbers."""
    return float(f"{value:.6g}")
