"""The cast that is worked out in wide arithmetic is the one that torch does, where torch's can be seen."""

from __future__ import annotations

import math

import pytest
import torch

from steadygrad.precision import FORMATS, emulated_cast

TORCH = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


def numbers() -> torch.Tensor:
    """Of every size that float32 knows, and the ends of every format with their neighbours."""
    g = torch.Generator().manual_seed(0)
    spread = torch.randn(20_000, generator=g) * 2.0 ** torch.randint(-140, 126, (20_000,), generator=g)
    ends = [x for f in FORMATS.values() for x in (f.max_value, f.overflow_from, 2.0**f.flush_exponent)]
    ends = torch.tensor(ends)
    beside = [torch.nextafter(ends, torch.tensor(x)) for x in (0.0, math.inf)]
    return torch.cat([spread, ends, *beside, torch.tensor([0.0, -0.0])])


@pytest.mark.parametrize("name", FORMATS)
def test_agrees_with_torchs_cast(name):
    x = numbers()
    ours, theirs = emulated_cast(x, FORMATS[name]), x.to(TORCH[name]).double()
    inside = ours.isfinite()  # torch's e4m3 saturates in place of overflowing
    assert torch.equal(ours[inside], theirs[inside])
    assert torch.equal(ours[~inside].abs(), torch.full_like(ours[~inside], math.inf)) and (~inside).any()
    if name != "e4m3":
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_facts_are_those_of_torch(name):
    found, to = torch.finfo(TORCH[name]), FORMATS[name]
    assert (to.max_value, 2.0**to.min_exponent) == (found.max, found.smallest_normal)
    assert 2.0**-to.mantissa_bits == found.eps


def test_scale_and_what_is_not_finite():
    x = torch.tensor([1e-4, math.nan, -math.inf])
    cast = emulated_cast(x, FORMATS["e4m3"], scale=2.0**10)
    assert cast[0] == 0.1015625 and cast[1].isnan() and cast[2] == -math.inf
