"""Gaussian moments of units that are not elementwise: gated units, sorted pairs, concatenated halves.

A unit takes several pre-activations of variance q and gives one value or several. Its ``second`` is the mean
square of a value it gives, its ``slope`` the factor on the squared norm of a gradient on its way from all its
values back to all its pre-activations, so that the variance map and chi read as for an elementwise function.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from steadygrad.init._quadrature import Moments


def gated(m: Moments, q: float) -> Moments:
    """``f(a) b``, a and b independent: ``q E[f^2]`` forward; ``q E[f'^2]`` through a and ``E[f^2]`` through b."""
    return Moments(q * m.second, q * m.slope + m.second, 0.0)


def same(m: Moments, q: float) -> Moments:
    """A permutation of its input keeps both norms; ReLU of a and -a has the moments of ReLU over both halves."""
    return m


def larger_of_two(m: Moments, q: float) -> Moments:
    """``max(a, b)``: as ``E[max^2] + E[min^2] = 2 q`` and both are alike, q; each gradient goes to one of the two."""
    return Moments(q, 1.0, math.sqrt(q / math.pi))


# unit: the elementwise function in it, and how the moments of that become the moments of the unit
UNITS: dict[str, tuple[str, Callable[[Moments, float], Moments]]] = {
    "swiglu": ("silu", gated),
    "geglu": ("gelu", gated),
    "glu": ("sigmoid", gated),
    "maxmin": ("identity", same),
    "crelu": ("relu", same),
    "maxout": ("identity", larger_of_two),  # of two
}
GATED = frozenset(name for name, (_, combine) in UNITS.items() if combine is gated)
