"""What chance adds in a net of finite width: the band in which signal and gradient of nearly every net lie."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from steadygrad.init._quadrature import Function, quadrature
from steadygrad.init._units import GATED, UNITS
from steadygrad.init.gain import ACTIVATIONS, Activation, as_function, moments

DEVIATIONS = 2.0  # standard deviations on either side: some nine nets of ten
_PER_NODE = math.log(10) / 2  # the moments are worked out at two variances a decade
_LAST_NODE = 24  # variance 1e12; beyond, and between, log-linear
_LAST_LOG = 120 * math.log(
    10
)  # where the walk itself goes over to log-linear; the band stays as wide from there


class Band(NamedTuple):
    """Edges by depth, of the logarithms of the variance and of the squared gradient norm."""

    variance_low: list[float]
    variance_high: list[float]
    gradient_low: list[float]
    gradient_high: list[float]


def band(
    activation: Activation,
    sigma_w: float,
    sigma_b: float,
    start: float,
    variance: list[float],
    gradient: list[float],
    width: int,
) -> Band:
    """The band around the walk of an infinitely wide net.

        d' = a d + e,    A' = A + c d + e'
        Var e = (E[f^4] / E[f^2]^2 - 1) / n,    Var e' = (3 E[f'^4] / E[f'^2]^2 - 1) / n

    d is the deviation of log q and A that of the log of the squared gradient norm; a and c are the slopes of
    log q' and of log chi over log q, taken as secants from the middle to the edge of the band, so that the band
    bends where the maps do. d begins with variance 2/n, that of the mean square of n Gaussian inputs. The
    typical net lies somewhat below the middle, which is the mean over nets and not their median.

    Source: the delta method on the variance map, worked out here; for ReLU both noises are 5/n per layer.
    """
    middle = [start, *variance]
    up, down = (_edge(activation, sigma_w, sigma_b, middle, width, sign * DEVIATIONS) for sign in (1.0, -1.0))
    against = [a.both + b.both < 0 for a, b in zip(up, down, strict=True)]  # more signal, less gradient
    above = [b.gradient if turn else a.gradient for a, b, turn in zip(up, down, against, strict=True)]
    below = [a.gradient if turn else b.gradient for a, b, turn in zip(up, down, against, strict=True)]
    return Band(
        [v - d.signal for v, d in zip(variance, down, strict=True)],
        [v + d.signal for v, d in zip(variance, up, strict=True)],
        [g - d for g, d in zip(gradient, below, strict=True)],
        [g + d for g, d in zip(gradient, above, strict=True)],
    )


class _Edge(NamedTuple):
    """How far one edge of the band lies from the middle, at one depth."""

    signal: float
    gradient: float
    both: float  # covariance of the two


def _edge(
    activation: Activation, sigma_w: float, sigma_b: float, middle: list[float], width: int, deviations: float
) -> list[_Edge]:
    """One edge by depth; ``deviations`` is negative for the lower one."""
    chart = _chart(activation)
    signal, both, gradient = 2 / width, 0.0, 0.0  # Var d, Cov(d, A), Var A
    far = abs(deviations)
    edges: list[_Edge] = []
    for here in middle[:-1]:
        s = deviations * math.sqrt(max(signal, 1e-12))  # a sign function has no noise
        if abs(s) > 1e4 or not abs(here) < _LAST_LOG:
            break
        before, edge = chart.at(here), chart.at(here + s)
        a = (_mapped(edge.second, sigma_w, sigma_b) - _mapped(before.second, sigma_w, sigma_b)) / s
        c = (edge.slope - before.slope) / s
        gradient += c * c * signal + 2 * c * both + edge.gradient_noise / width
        both = a * both + a * c * signal
        signal = a * a * signal + edge.signal_noise / width
        edges.append(_Edge(far * math.sqrt(signal + 2 / width), far * math.sqrt(max(0.0, gradient)), both))
    last = edges[-1:] or [_Edge(0.0, 0.0, 0.0)]
    return edges + last * (len(middle) - 1 - len(edges))


def _mapped(second: float, sigma_w: float, sigma_b: float) -> float:
    """The logarithm of ``sigma_w^2 E[f^2] + sigma_b^2``."""
    scaled = second + 2 * math.log(sigma_w)
    return scaled if sigma_b == 0 else math.log(math.exp(min(scaled, 700.0)) + sigma_b**2)


class _Node(NamedTuple):
    second: float  # log E[f^2]
    slope: float  # log E[f'^2]
    signal_noise: float  # n Var e
    gradient_noise: float  # n Var e'


class _Chart:
    """The moments of an activation over the logarithm of the variance, worked out where they are asked for."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.nodes: dict[int, _Node] = {}

    def at(self, log_q: float) -> _Node:
        place = log_q / _PER_NODE
        left = max(-_LAST_NODE, min(_LAST_NODE - 1, math.floor(place)))
        low, high = self._node(left), self._node(left + 1)
        t = place - left
        second, slope = (low[i] + t * (high[i] - low[i]) for i in (0, 1))
        near = low if t < 0.5 else high
        return _Node(second, slope, near.signal_noise, near.gradient_noise)

    def _node(self, k: int) -> _Node:
        if k not in self.nodes:
            q = math.exp(k * _PER_NODE)
            m = moments(self.activation, q)
            second, slope = (math.log(max(v, 1e-300)) for v in (m.second, m.slope))
            self.nodes[k] = _Node(second, slope, *_noises(self.activation, q))
        return self.nodes[k]


def _noises(activation: Activation, q: float) -> tuple[float, float]:
    """n Var e and n Var e' at variance q: 2 and 2 for a linear layer, 5 and 5 behind ReLU."""
    unit = isinstance(activation, str) and activation in UNITS
    if unit and activation not in GATED:
        return 2.0, 2.0  # values that are Gaussian but for their order or sign
    f = ACTIVATIONS[UNITS[str(activation)][0]] if unit else as_function(activation)
    slope = partial(_slope, f)
    second, squared_slope, _ = quadrature(f, q)
    fourth = quadrature(lambda x: f(x).square(), q).second
    fourth_slope = quadrature(lambda x: slope(x).square(), q).second
    if not unit:
        return _excess(fourth, second), _excess(3 * fourth_slope, squared_slope)
    cross = quadrature(lambda x: f(x) * slope(x), q).second
    through = 3 * q**2 * fourth_slope + 2 * q * cross + fourth  # E[(f'^2 b^2 + f^2)^2], b ~ N(0, q)
    return _excess(3 * fourth, second), _excess(3 * through, q * squared_slope + second)


def _excess(fourth: float, second: float) -> float:
    return fourth / second**2 - 1 if second > 1e-140 else 0.0


def _slope(f: Function, x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = f(x.clone())
        return torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)


def _chart(activation: Activation) -> _Chart:
    return _chart_by_name(activation) if isinstance(activation, str) else _Chart(activation)


@lru_cache(maxsize=64)
def _chart_by_name(name: str) -> _Chart:
    return _Chart(name)
