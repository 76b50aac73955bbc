"""Argument checks: what passes, and that each error names the argument, the value and the bound."""

import math
import re

import numpy as np
import pytest

from steadygrad._check import count, fraction, number, one_of, positive


def test_what_passes():
    assert count("n", np.int64(3)) == 3 and type(count("n", np.int64(3))) is int
    assert number("x", -2) == -2.0 and number("x", np.float32(0.5)) == 0.5 and number("x", 0, 0) == 0.0
    assert positive("x", math.inf) == math.inf and positive("x", 3, finite=True) == 3.0
    assert (fraction("p", 0), fraction("p", 1)) == (0.0, 1.0)
    assert one_of("mode", "a", ("a", "b")) == "a"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: count("n", 0), ValueError, "n must be at least 1, got 0"),
        (lambda: count("n", 2.0), TypeError, "n must be a whole number, got float 2.0"),
        (lambda: count("n", True), TypeError, "n must be a whole number, got bool True"),
        (lambda: count("n", -1, 0, ": from 0"), ValueError, "n must be at least 0, got -1: from 0"),
        (lambda: number("x", math.nan), ValueError, "x must be finite, got nan"),
        (lambda: number("x", 0, 0, above=True), ValueError, "x must be finite and above 0, got 0.0"),
        (lambda: number("x", -1, 0), ValueError, "x must be finite and at least 0, got -1.0"),
        (lambda: number("x", "1"), TypeError, "x must be a number, got str"),
        (lambda: positive("x", 0), ValueError, "x must be positive, got 0.0"),
        (lambda: positive("x", math.nan), ValueError, "x must be positive, got nan"),
        (lambda: positive("x", math.inf, finite=True), ValueError, "x must be positive and finite, got inf"),
        (lambda: fraction("p", 1.5), ValueError, "p must be between 0 and 1, got 1.5"),
        (lambda: fraction("p", 1, one=False), ValueError, "p must be at least 0 and below 1, got 1"),
        (lambda: fraction("p", 0, zero=False), ValueError, "p must be above 0 and at most 1, got 0"),
        (lambda: fraction("p", math.nan), ValueError, "p must be between 0 and 1, got nan"),
        (lambda: one_of("mode", "c", ("a", "b")), ValueError, "mode must be one of a, b, got 'c'"),
    ],
)
def test_what_does_not(call, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        call()
