"""Sums over what a module has put out, kept on the device until they are asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steadygrad.probe.host import near, wide
from steadygrad.probe.outputs import Activation
from steadygrad.probe.reductions import SAFE
from steadygrad.records import NAN, ActivationStats

SAMPLE = 131_072  # values of an output of which it is enough to count the flat ones
MIN_ROWS = 16  # a healthy ReLU unit is 0 on all of fewer samples too often to be called dead


class Totals:
    """What one module has shown since it was armed: sums over its calls, kept on the device."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.square: Tensor | None = None
        self.count = 0
        self.input_square: Tensor | None = None
        self.input_count = 0
        self.alive: Tensor | None = None  # one flag per unit
        self.rows = 0
        self.flat: Tensor | None = None
        self.flat_count = 0

    def add_output(self, values: Tensor) -> None:
        self.square = _plus(self.square, _square(values))
        self.count += values.numel()

    def add_input(self, values: Tensor) -> None:
        self.input_square = _plus(self.input_square, _square(values))
        self.input_count += values.numel()

    def add_activation(self, kind: Activation, values: Tensor, axis: int) -> None:
        """Count the flat values, or mark the living units, of an output with units (or probabilities) on ``axis``."""
        if kind is Activation.RELU:
            others = [d for d in range(values.dim()) if d != axis % values.dim()]
            alive = (values.amax(others) if others else values) != 0  # none is below 0, and a nan stays one
            if self.alive is None or self.alive.shape != alive.shape or self.alive.device != alive.device:
                self.alive, self.rows = alive, 0
            else:
                self.alive = self.alive | alive
            self.rows += values.numel() // alive.numel()
            return
        if kind is Activation.TANH:
            flat = _rows(values).abs() > 0.99
        elif kind is Activation.SIGMOID:
            flat = (_rows(values) - 0.5).abs() > 0.49
        elif values.shape[axis] > 1:
            flat = values.amax(axis) > 0.999
        else:
            return  # a softmax over one value is always 1
        self.flat = _plus(self.flat, flat.count_nonzero())
        self.flat_count += flat.numel()

    def on_device(self) -> dict[str, Tensor]:
        sums = {"square": self.square, "input": self.input_square, "flat": self.flat}
        if self.alive is not None:
            sums["alive"] = self.alive.sum()
        return {kind: tensor for kind, tensor in sums.items() if tensor is not None}

    def stats(self, path: str, sums: dict[str, float]) -> ActivationStats:
        units = self.alive.numel() if self.alive is not None and self.rows >= MIN_ROWS else 0
        return ActivationStats(
            module=path,
            module_type=self.kind,
            rms=math.sqrt(sums["square"] / self.count),
            dead=1 - sums["alive"] / units if units else NAN,
            saturated=sums["flat"] / self.flat_count if self.flat_count else NAN,
            input_rms=math.sqrt(sums["input"] / self.input_count) if self.input_count else NAN,
        )


def _square(values: Tensor) -> Tensor:
    """Sum of squares, wide enough that only a value that is not finite makes it so."""
    dtype = wide(values.device)
    if near(values) and values.dtype != dtype:  # four times faster, where the squares fit
        norm = torch.linalg.vector_norm(values, dtype=torch.float32)
        if SAFE[0] < float(norm) < SAFE[1]:
            return norm.to(dtype).square()
    return torch.linalg.vector_norm(values, dtype=dtype).square()


def _rows(values: Tensor) -> Tensor:
    """All of the values, or of very many a share, evenly spread: whole rows."""
    if values.numel() <= SAMPLE or values.dim() < 2:
        return values
    rows = values.flatten(0, -2)
    return rows[:: -(-values.numel() // SAMPLE)] if len(rows) > 1 else rows


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None or total.device != more.device else total + more
