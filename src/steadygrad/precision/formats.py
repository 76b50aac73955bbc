"""The formats, and a cast to each worked out in wide arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format, round to nearest, ties to even, with subnormal numbers."""

    name: str
    mantissa_bits: int  # stored, without the leading 1
    min_exponent: int  # of the smallest normal number
    max_value: float  # largest finite number

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite number."""
        return math.frexp(self.max_value)[1] - 1

    @property
    def overflow_from(self) -> float:
        """Numbers above it are rounded beyond the largest finite one."""
        return self.max_value + 2.0 ** (self.max_exponent - self.mantissa_bits - 1)

    @property
    def flush_exponent(self) -> int:
        """Numbers up to 2 to the power of this are rounded to 0: half of the smallest subnormal."""
        return self.min_exponent - self.mantissa_bits - 1


FORMATS: dict[str, Format] = {
    "bf16": Format("bf16", 7, -126, (2 - 2.0**-7) * 2.0**127),
    "fp16": Format("fp16", 10, -14, 65504.0),
    "e4m3": Format("e4m3", 3, -6, 448.0),  # e4m3fn: no infinity, and the last code of the top exponent is nan
    "e5m2": Format("e5m2", 2, -14, 57344.0),
}
"""By name: bfloat16 and float16, and the two of 8 bits of Micikevicius et al. (2022)."""


@torch.no_grad()
def emulated_cast(x: Tensor, to: Format, scale: float = 1.0) -> Tensor:
    """``x * scale`` as ``to`` would hold it, in float64: rounded, flushed to 0 where too small, inf where too large.

    For torch's own cast saturates for some formats and some machines: what would have overflowed cannot be seen.

    Args:
        x: any real floating tensor; not changed.
        to: one of `FORMATS`.
        scale: the factor before the cast, > 0.

    Returns:
        A float64 tensor of the shape of ``x``; nan and inf stay what they are.

    Example:
        >>> emulated_cast(torch.tensor([0.3, 1e-9, 500.0]), FORMATS["e4m3"]).tolist()
        [0.3125, 0.0, inf]

    Source: Micikevicius et al. (2022), Table 1, https://arxiv.org/abs/2209.05433; IEEE 754 for float16
    """
    wide = x.detach().double() * scale
    exponent = torch.frexp(wide).exponent.sub_(1).clamp_(min=to.min_exponent)
    step = torch.ldexp(torch.ones_like(wide), exponent - to.mantissa_bits)
    rounded = torch.round(wide / step) * step  # to even
    held = torch.where(
        rounded.abs() > to.max_value, torch.copysign(torch.full_like(wide, math.inf), wide), rounded
    )
    return torch.where(wide.isfinite(), held, wide)
