"""A histogram of exponents says what a cast would lose, at every scale, without the cast."""

from __future__ import annotations

import math

import pytest
import torch

from steadygrad.precision import FORMATS, ExponentHistogram, emulated_cast, exponent_histogram


def lost(x, to, shift):
    """What the cast itself loses: the slow twin of ``ExponentHistogram.cast``."""
    cast = emulated_cast(x, to, 2.0**shift)
    small = (cast != 0) & (x.double().abs() * 2.0**shift < 2.0**to.min_exponent)
    return int((x.isfinite() & cast.isinf()).sum()), int(((x != 0) & (cast == 0)).sum()), int(small.sum())


def draw(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5000, generator=g)
    if kind == "relu":
        return x.relu()
    if kind == "wide":
        return x * torch.exp(4 * torch.randn(5000, generator=g))
    return torch.rand(5000, generator=g) - 0.5 if kind == "uniform" else x


@pytest.mark.parametrize("kind", ["normal", "relu", "wide", "uniform"])
@pytest.mark.parametrize("name", FORMATS)
def test_counts_are_those_of_the_cast(kind, name):
    x, to = draw(kind), FORMATS[name]
    histogram = exponent_histogram(x)
    seen = 0
    for end in (to.max_exponent, to.min_exponent, to.flush_exponent):
        for shift in range(end - 6, end + 7, 2):
            over, flushed, small = lost(x, to, shift)
            found = histogram.cast(to, shift)
            within = 0 if name in ("e4m3", "e5m2") else 5  # bf16 and fp16 end inside a part
            assert found.overflow == pytest.approx(over, rel=0, abs=within)
            assert found.flushed == flushed
            assert found.subnormal == pytest.approx(small, abs=2)  # some are rounded up to a normal number
            seen += over + flushed
    assert seen > 0


def test_histograms_add_up():
    x, y = draw("wide"), torch.tensor([0.0, math.nan, -math.inf, 1e-40])
    both = exponent_histogram(torch.cat([x, y]))
    assert exponent_histogram(x) + exponent_histogram(y) == both
    assert (both.zeros, both.nonfinite, both.numel, both.nonzero) == (1, 2, 5004, 5001)
    assert both.exponents[-133] == 1  # a subnormal of float32


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("margin", [0, 2])
@pytest.mark.parametrize("size", [1e-7, 1.0, 1e9])
def test_the_wanted_scale_fits_the_largest_number_with_its_margin(name, margin, size):
    x, to = size * draw("normal"), FORMATS[name]
    histogram = exponent_histogram(x)
    shift = histogram.shift(to, margin)
    now, then = lost(x, to, 0), lost(x, to, shift)
    assert then[0] == 0 and then[1] <= now[1]
    if shift:
        assert (
            to.max_value / 2 ** (margin + 1) < float(x.abs().max()) * 2.0**shift <= to.max_value / 2**margin
        )
    else:
        assert now[0] == 0 and now[1] + now[2] <= 0.001 * 5000 + then[1] + then[2]


def test_dtypes_and_layouts():
    x = torch.tensor([0.5, 0.0, 48.0])
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2):
        assert exponent_histogram(x.to(dtype)) == exponent_histogram(x)
    assert exponent_histogram(x.to_sparse()).exponents == {-1: 1, 5: 1}
    assert exponent_histogram(torch.tensor([1e300], dtype=torch.float64)).cast(FORMATS["bf16"]).overflow == 1
    assert exponent_histogram(torch.zeros(0)) == ExponentHistogram() and exponent_histogram(x[:0]).numel == 0
    assert exponent_histogram(torch.zeros(3)).shift(FORMATS["fp16"]) == 0
    for bad in (torch.arange(3), torch.zeros(2, dtype=torch.complex64), [1.0]):
        with pytest.raises(TypeError, match="real floating tensor"):
            exponent_histogram(bad)
