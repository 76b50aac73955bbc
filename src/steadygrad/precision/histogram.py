"""A histogram of exponents, and what a cast would do to a tensor as far as its histogram can say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steadygrad.precision.formats import Format

PARTS = 16  # 464, from where e4m3 is left, is 2^8 (1 + 13/16); 61440, for e5m2, is 2^15 (1 + 14/16)
LITTLE = 1e-3  # a scale that saves fewer of the numbers is not worth its bookkeeping


@dataclass(frozen=True, slots=True)
class CastCounts:
    """Numbers of a tensor that a cast would lose."""

    overflow: float  # finite before, not finite after
    flushed: float  # not 0 before, 0 after
    subnormal: float  # kept, and with fewer bits: below the smallest normal number


@dataclass(frozen=True)
class ExponentHistogram:
    """How many numbers have which exponent and which four leading bits behind it. Two of them add up.

    A key is 16 floor(log2(abs(x))) + part: the sixteenths of the way from one power of two to the next, at which both
    formats of 8 bits end.
    """

    counts: Mapping[int, int] = field(default_factory=dict)
    zeros: int = 0
    nonfinite: int = 0
    max_abs: float = 0.0  # of the finite ones

    @property
    def numel(self) -> int:
        """Numbers in all."""
        return self.nonzero + self.zeros + self.nonfinite

    @property
    def nonzero(self) -> int:
        """Finite numbers other than 0."""
        return sum(self.counts.values())

    @property
    def exponents(self) -> dict[int, int]:
        """Numbers by exponent alone, in rising order."""
        found: dict[int, int] = {}
        for key in sorted(self.counts):
            found[key // PARTS] = found.get(key // PARTS, 0) + self.counts[key]
        return found

    def __add__(self, other: ExponentHistogram) -> ExponentHistogram:
        return ExponentHistogram(
            {
                k: self.counts.get(k, 0) + other.counts.get(k, 0)
                for k in sorted({*self.counts, *other.counts})
            },
            self.zeros + other.zeros,
            self.nonfinite + other.nonfinite,
            max(self.max_abs, other.max_abs),
        )

    def cast(self, to: Format, shift: int = 0) -> CastCounts:
        """What a cast of the tensor times 2 to the power of ``shift`` would lose.

        Exact but for numbers that lie halfway between two others; of a format that ends within a part (bf16, fp16) the
        share of that part beyond the end is estimated.
        """
        flush, normal = PARTS * (to.flush_exponent - shift), PARTS * (to.min_exponent - shift)
        flushed = sum(n for k, n in self.counts.items() if k < flush)
        subnormal = sum(n for k, n in self.counts.items() if flush <= k < normal)
        end = _place(to.overflow_from) - PARTS * shift
        over = float(sum(n for k, n in self.counts.items() if k >= end))
        last = math.floor(end)
        reach = min(
            1.0, (_place(self.max_abs) if self.max_abs else end) - last
        )  # nothing lies beyond the largest
        if last < end < last + reach:
            over += self.counts.get(last, 0) * (last + reach - end) / reach
        return CastCounts(over, flushed, subnormal)

    def shift(self, to: Format, margin: int = 1) -> int:
        """The power of two by which the tensor should be multiplied before a cast; 0 where little is gained.

        The largest number then lies ``margin`` doublings below the end of the format, or up to one more.
        """
        if not self.max_abs:
            return 0
        best = math.floor(math.log2(to.max_value) - margin - math.log2(self.max_abs))
        now, then = self.cast(to), self.cast(to, best)
        saved = now.flushed + now.subnormal - then.flushed - then.subnormal
        return best if best < 0 or saved > LITTLE * self.nonzero else 0


def _place(x: float) -> float:
    """Where a number lies on the axis of the histogram's keys."""
    mantissa, exponent = math.frexp(x)
    return PARTS * (exponent - 1 + 2 * mantissa - 1)


@torch.no_grad()
def exponent_histogram(x: Tensor) -> ExponentHistogram:
    """Count the exponents of a tensor.

    Args:
        x: any real floating tensor, dense or sparse (of a sparse one the entries that are stored).

    Returns:
        Its histogram, on the host. One read of the tensor and a few temporaries of its size.

    Raises:
        TypeError: not a real floating tensor.

    Example:
        >>> h = exponent_histogram(torch.tensor([0.0, 1.0, 1.5, -6.0, float("inf")]))
        >>> h.exponents, h.zeros, h.nonfinite, h.max_abs
        ({0: 2, 2: 1}, 1, 1, 6.0)
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a real floating tensor, got {what}: give real and imaginary part apart")
    values = x.detach()
    values = values.coalesce().values() if values.is_sparse else values
    values = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    finite = values[values.isfinite()]
    kept = finite[finite != 0].abs()
    zeros, nonfinite = finite.numel() - kept.numel(), values.numel() - finite.numel()
    if not kept.numel():
        return ExponentHistogram({}, zeros, nonfinite)
    mantissa, exponent = torch.frexp(kept)
    keys = PARTS * (exponent - 1) + ((2 * mantissa - 1) * PARTS).int()
    lowest = int(keys.min())
    counts = torch.bincount(keys - lowest).tolist()
    found = {lowest + i: n for i, n in enumerate(counts) if n}
    return ExponentHistogram(found, zeros, nonfinite, float(kept.max()))
