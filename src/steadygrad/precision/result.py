"""Which tensors a low precision would lose, and which scale each wants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from steadygrad._check import count
from steadygrad.init.depth import aligned
from steadygrad.precision.formats import FORMATS
from steadygrad.precision.histogram import CastCounts, ExponentHistogram, exponent_histogram

MARGIN = 1
Kind = Literal["tensor", "weight", "input", "gradient", "weight gradient"]


@dataclass(frozen=True)
class TensorHeadroom:
    """One tensor and what each format would do to it."""

    name: str
    kind: Kind
    histogram: ExponentHistogram
    margin: int = (
        MARGIN  # doublings between the largest number and the end of the format, after the wanted scale
    )

    def counts(self, name: str) -> CastCounts:
        """What a cast to a format of this name loses as it is."""
        return self.histogram.cast(FORMATS[name])

    def scale(self, name: str) -> float:
        """The power of two to multiply by before a cast; 1 where nothing is gained."""
        return 2.0 ** self.histogram.shift(FORMATS[name], self.margin)

    def scaled_counts(self, name: str) -> CastCounts:
        """What the cast loses with this scale."""
        to = FORMATS[name]
        return self.histogram.cast(to, self.histogram.shift(to, self.margin))

    def headroom(self, name: str) -> float:
        """Doublings that the largest number has left in a format; negative: it overflows. inf without a number."""
        largest = self.histogram.max_abs
        return math.log2(FORMATS[name].max_value / largest) if largest else math.inf

    def said(self, name: str) -> str:
        """For people: what is lost as it is, and what with which scale."""
        shift = self.histogram.shift(FORMATS[name], self.margin)
        now = self._lost(self.counts(name))
        if not shift:
            return now or "fits"
        then = self._lost(self.scaled_counts(name))
        return f"{now or 'loses bits'}; x 2^{shift}: {then or 'fits'}"

    def _lost(self, counts: CastCounts) -> str:
        parts = [("over", counts.overflow), ("to 0", counts.flushed)]
        return ", ".join(f"{_percent(n / self.histogram.nonzero)} {what}" for what, n in parts if n >= 0.5)


@dataclass(frozen=True)
class Headroom:
    """What `headroom` measured; ``str()`` aligns it."""

    rows: tuple[TensorHeadroom, ...]

    def __getitem__(self, name: str) -> TensorHeadroom:
        """By name; of a layer ``"input of conv1"``."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no tensor {name!r}; there are {', '.join(row.name for row in self.rows[:8])}, ...")

    def losing(self, name: str, share: float = 0.0) -> tuple[TensorHeadroom, ...]:
        """The tensors that a format would hurt as they are: an overflow, or more than a share flushed to 0."""
        return tuple(row for row in self.rows if _hurt(row, name, share))

    def loss_scale(self, name: str = "fp16") -> float:
        """The largest power of two for the loss with which no gradient overflows, with the margin; inf without one.

        One factor for all gradients, as GradScaler has it.
        """
        gradients = [row for row in self.rows if "gradient" in row.kind and row.histogram.max_abs]
        if not gradients:
            return math.inf
        return 2.0 ** math.floor(min(row.headroom(name) - row.margin for row in gradients))

    def __str__(self) -> str:
        head = ("tensor", "numbers", "exponents", *FORMATS)
        shown = [row for row in self.rows if any(row.said(name) != "fits" for name in FORMATS)]
        lines = aligned([head, *map(_cells, shown)])
        if len(shown) < len(self.rows):
            lines.append(f"{len(self.rows) - len(shown)} more fit into every format as they are")
        scale = self.loss_scale()
        if math.isfinite(scale):
            lines.append(f"largest loss scale for gradients in fp16: 2^{math.log2(scale):.0f}")
        broken = [row.name for row in self.rows if row.histogram.nonfinite]
        if broken:
            lines.append(f"not finite already: {', '.join(broken)}")
        return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.1g}%"


def _hurt(row: TensorHeadroom, name: str, share: float) -> bool:
    counts = row.counts(name)
    return counts.overflow >= 0.5 or counts.flushed > share * row.histogram.nonzero


def _cells(row: TensorHeadroom) -> Sequence[str]:
    exponents = row.histogram.exponents
    span = f"2^{min(exponents)} to 2^{max(exponents)}" if exponents else "none"
    return (row.name, f"{row.histogram.numel:,}", span, *(row.said(name) for name in FORMATS))


def tensor_headroom(tensors: Mapping[str, Tensor], *, margin: int = MARGIN) -> Headroom:
    """Forecast what bf16, fp16, fp8 e4m3 and fp8 e5m2 would lose of some tensors, and which scale each wants.

    When to use it: tensors that you hold: a checkpoint, activations of a run, the state of an optimizer. For a model
    as it trains take `headroom`.

    Values in use: margin 1, a factor of 2 for the batches to come; delayed scaling of fp8 has 0 in TransformerEngine.

    Cost: one read of each tensor and a few temporaries of its size; no cast.

    Args:
        tensors: by name; real and floating, dense or sparse.
        margin: doublings between the largest number and the end of a format that a wanted scale leaves, at least 0.

    Returns:
        A `Headroom`. nan and inf are counted and left out of the rest.

    Raises:
        TypeError: a tensor that is not real and floating.

    Example:
        >>> import torch
        >>> found = tensor_headroom({"gradient": torch.tensor([3e-9, 2e-6, 1e-4])})
        >>> found["gradient"].said("fp16"), found["gradient"].scale("fp16")
        ('33% to 0; x 2^28: fits', 268435456.0)

    Source: Micikevicius et al. (2018), section 3.2, https://arxiv.org/abs/1710.03740; Micikevicius et al. (2022),
    https://arxiv.org/abs/2209.05433
    """
    margin = count("margin", margin, least=0)
    return Headroom(
        tuple(TensorHeadroom(name, "tensor", exponent_histogram(x), margin) for name, x in tensors.items())
    )
