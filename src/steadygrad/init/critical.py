"""Variance map, fixed point and critical point: what a plain net does with an activation at depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from steadygrad.init.gain import SMALL, Activation, backward_gain, check_name, moments


class Critical(NamedTuple):
    """Where signal and gradient both keep their size: ``chi = 1`` at the fixed point ``q``."""

    sigma_w: float
    sigma_b: float
    q: float  # 0.0 stands for the limit of a small signal
    chi_q: float  # slope of the variance map at q: below 1 the point attracts, above 1 it repels


def variance_map(activation: Activation, q: float, sigma_w: float, sigma_b: float = 0.0) -> float:
    """Pre-activation variance one layer on: ``sigma_w^2 E[f(z)^2] + sigma_b^2``.

    Source: Poole et al. (2016), eq. 3, https://arxiv.org/abs/1606.05340
    """
    check_sigmas(sigma_w, sigma_b)
    return sigma_w**2 * moments(activation, q).second + sigma_b**2


def fixed_point(activation: Activation, sigma_w: float, sigma_b: float = 0.0, q: float = 1.0) -> float:
    """The variance ``q*`` that a deep net settles to, from ``q`` on: 0.0 if it dies out, inf if it grows for ever.

    Example:
        >>> round(fixed_point("selu", 1.0), 4), fixed_point("relu", 1.5)
        (1.0, inf)

    Source: Poole et al. (2016), section 3, https://arxiv.org/abs/1606.05340
    """
    check_sigmas(sigma_w, sigma_b)
    for _ in range(100):
        following = variance_map(activation, q, sigma_w, sigma_b)
        if following < 1e-30:
            return 0.0
        if following > 1e30:
            return math.inf
        if abs(following - q) <= 1e-12 * q:
            return following
        rises, q = following > q, following

    def gap(v: float) -> float:
        return variance_map(activation, v, sigma_w, sigma_b) - v

    if rises:  # slowly: the fixed point lies above
        high = 4 * q
        while gap(high) > 0:
            if high > 1e30:
                return math.inf
            high *= 4
        return _bisect(lambda v: -gap(v), q, high)
    if gap(SMALL) <= 0:
        return 0.0  # slowly, as tanh does at sigma_w = 1
    return _bisect(lambda v: -gap(v), SMALL, q)


def chi(activation: Activation, sigma_w: float, sigma_b: float = 0.0, q: float | None = None) -> float:
    """Factor of the squared gradient norm per layer, at ``q`` or at the fixed point: ``sigma_w^2 E[f'(z)^2]``.

    Example:
        >>> round(chi("tanh", sigma_w=1.76**0.5, sigma_b=0.05**0.5), 3)
        1.0

    Source: Schoenholz et al. (2017), section 3 and figure 1, https://arxiv.org/abs/1611.01232
    """
    check_sigmas(sigma_w, sigma_b)
    if q is None:
        q = fixed_point(activation, sigma_w, sigma_b)
    if math.isinf(q):
        raise ValueError(f"the variance grows for ever at sigma_w {sigma_w}: there is no fixed point; pass q")
    return sigma_w**2 * moments(activation, max(q, SMALL)).slope


def critical_point(activation: Activation, sigma_b: float | None = None) -> Critical:
    """The ``(sigma_w, sigma_b)`` at which a deep net neither explodes nor vanishes, in both directions.

        sigma_w^2 E[f'(z)^2] = 1   and   q = sigma_w^2 E[f(z)^2] + sigma_b^2

    Every ``q`` gives one such pair, so the choice is that of ``sigma_b``. Left out, it is the smallest at
    which the point does not repel: 0 for ReLU and leaky ReLU (any q), 0 for tanh, ELU, SELU (q -> 0), and for
    GELU, SiLU, Mish and hardswish the half-stable point, where random biases hold the signal up.

    Args:
        activation: name, module or elementwise function.
        sigma_b: standard deviation of the biases, >= 0; None to choose as above.

    Raises ValueError if there is no critical point: ReLU with sigma_b > 0, squared ReLU (its variance map
    always repels).

    Example:
        >>> [round(v, 3) for v in critical_point("relu")], round(critical_point("tanh", 0.05**0.5).sigma_w ** 2, 2)
        ([1.414, 0.0, 1.0, 1.0], 1.76)
        >>> point = critical_point("gelu")
        >>> round(point.sigma_w**2, 4), round(point.sigma_b**2, 4)
        (1.9831, 0.1729)

    Source: Schoenholz et al. (2017), section 3, https://arxiv.org/abs/1611.01232; for the half-stable points
    Roberts, Yaida & Hanin (2022), The Principles of Deep Learning Theory, section 5.3.4,
    https://arxiv.org/abs/2106.10165
    """
    if sigma_b is not None and not 0 <= sigma_b < math.inf:
        raise ValueError(f"sigma_b must be >= 0 and finite, got {sigma_b}")
    if isinstance(activation, str):
        check_name(activation)
        return _critical_by_name(activation, sigma_b)
    return _critical(activation, sigma_b)


@lru_cache(maxsize=512)
def _critical_by_name(name: str, sigma_b: float | None) -> Critical:
    return _critical(name, sigma_b)


def _critical(activation: Activation, sigma_b: float | None) -> Critical:
    grid = [10 ** (k / 4) for k in range(-20, 17)]  # variances 1e-5 .. 1e4
    spread = [bias_variance(activation, q) / q for q in grid]
    if max(map(abs, spread)) < 1e-9:  # scale invariant: every variance is a fixed point
        if sigma_b:
            raise ValueError(
                f"no critical point with sigma_b {sigma_b}: a scale-invariant activation needs sigma_b = 0"
            )
        return _at(activation, 1.0, 0.0)
    target = 0.0 if sigma_b is None else sigma_b**2
    small = moments(activation, SMALL)
    if target == 0 and small.second < 1e-3 and small.slope > 1e-3 and repulsion(activation, 1e-3) <= 1 + 1e-6:
        return Critical(1 / math.sqrt(small.slope), 0.0, 0.0, 1.0)
    if sigma_b is None:
        excess = [repulsion(activation, q) - 1 for q in grid]
        for low, high, before, after in zip(grid, grid[1:], excess, excess[1:], strict=False):
            if before > 0 >= after and bias_variance(activation, low) > 0:
                q = _bisect(lambda v: 1 - repulsion(activation, v), low, high)
                return _at(activation, q, bias_variance(activation, q))
    gaps = [s * q - target for s, q in zip(spread, grid, strict=True)]
    for low, high, before, after in zip(grid, grid[1:], gaps, gaps[1:], strict=False):
        if before < 0 <= after:
            return _at(
                activation, _bisect(lambda v: bias_variance(activation, v) - target, low, high), target
            )
    raise ValueError(
        f"no critical point with sigma_b {sigma_b}: no variance in 1e-5 .. 1e4 is kept in both directions"
    )


def bias_variance(activation: Activation, q: float) -> float:
    """The ``sigma_b^2`` that makes ``q`` a fixed point at ``chi = 1``; negative if there is none."""
    m = moments(activation, q)
    return q - m.second / m.slope if m.slope > 0 else -math.inf


def repulsion(activation: Activation, q: float) -> float:
    """``chi_q``: slope of the variance map at ``q`` when ``chi = 1`` there."""
    step = 1e-4 * q
    rise = moments(activation, q + step).second - moments(activation, q - step).second
    return rise / (2 * step) / moments(activation, q).slope


def _at(activation: Activation, q: float, variance: float) -> Critical:
    return Critical(backward_gain(activation, q), math.sqrt(variance), q, repulsion(activation, q))


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    while high / low > 1 + 1e-13:
        middle = math.sqrt(low * high)
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return math.sqrt(low * high)


def check_sigmas(sigma_w: float, sigma_b: float) -> None:
    if not (0 < sigma_w < math.inf):
        raise ValueError(f"sigma_w must be positive and finite, got {sigma_w}")
    if not (0 <= sigma_b < math.inf):
        raise ValueError(f"sigma_b must be >= 0 and finite, got {sigma_b}")
