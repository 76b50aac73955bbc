"""Gain of any activation, worked out numerically: how much a layer must amplify so that a deep net keeps its signal.

The mean-field picture. A wide layer ``x' = W f(x) + b`` with ``Var W = sigma_w^2 / fan_in`` and ``Var b =
sigma_b^2`` turns pre-activations of variance ``q`` into pre-activations of variance

    q' = sigma_w^2 E[f(z)^2] + sigma_b^2,       z ~ N(0, q)                    (variance map)

and multiplies the squared norm of the gradient, on its way back, by

    chi = sigma_w^2 E[f'(z)^2]                                                  (slope of the correlation map)

``chi > 1`` explodes, ``chi < 1`` vanishes, ``chi = 1`` is critical. Everything here follows from the two
integrals.

Source: Poole et al. (2016), eq. 3 and section 3, https://arxiv.org/abs/1606.05340; Schoenholz et al. (2017),
section 3, https://arxiv.org/abs/1611.01232.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.init._quadrature import Function, Moments, quadrature
from steadygrad.init._units import GATED, UNITS

Activation = str | nn.Module | Function


def squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0)^2``. Source: So et al. (2021), https://arxiv.org/abs/2109.08668"""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Function] = {
    "identity": lambda x: x * 1.0,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01, torch's default
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "squared_relu": squared_relu,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
}

SMALL = 1e-12  # the variance that stands for "in the limit of a small signal"


def as_function(activation: Activation) -> Function:
    """The elementwise function behind a name, a module (copied, in float64, in eval mode) or a callable."""
    if isinstance(activation, str):
        check_name(activation)
        if activation in UNITS:
            raise TypeError(
                f"{activation!r} is not elementwise: it has moments and gains, but is no function of one number"
            )
        return ACTIVATIONS[activation]
    if isinstance(activation, nn.Module):
        # in eval mode, because RReLU draws in training
        return copy.deepcopy(activation).to(device="cpu", dtype=torch.float64).eval()
    if not callable(activation):
        raise TypeError(f"activation must be a name, a module or a function, got {type(activation).__name__}")
    return activation


def check_name(name: str) -> None:
    if name not in ACTIVATIONS and name not in UNITS:
        raise ValueError(
            f"unknown activation {name!r}: use one of {', '.join((*ACTIVATIONS, *UNITS))}, or pass the function itself"
        )


def moments(activation: Activation, q: float = 1.0) -> Moments:
    """Second moment, mean squared slope and mean of an activation under Gaussian input.

        second = E[f(z)^2],  slope = E[f'(z)^2],  mean = E[f(z)],    z ~ N(0, q)

    Adaptive Gauss-Legendre quadrature over +-13 standard deviations: a panel is halved until it agrees with
    its halves to 1e-10, so kinks and jumps (ReLU, hardtanh, a threshold anywhere) are found and resolved.

    Args:
        activation: name in ``ACTIVATIONS``, module, or elementwise function of a float64 tensor; or the name
            of a unit: "swiglu", "geglu", "glu", "maxmin" (GroupSort too), "crelu", "maxout" (of two).
        q: variance of the pre-activation, > 0 and finite.

    Of a unit, ``second`` is that of each value it gives, and ``slope`` the factor on the squared norm of a
    gradient from its values to its pre-activations: ``q E[f'^2] + E[f^2]`` for a gated unit, 1 for MaxMin.

    Names and parameter-free torch modules are cached. A function that gives a non-finite value inside the
    range raises ValueError. The global RNG is not used.

    Example:
        >>> m = moments("relu")
        >>> round(m.second, 6), round(m.slope, 6)
        (0.5, 0.5)

    Source: Poole et al. (2016), eq. 3 and section 3, https://arxiv.org/abs/1606.05340
    """
    if not (isinstance(q, (int, float)) and 0 < q < math.inf):
        raise ValueError(f"q must be a positive finite variance, got {q!r}")
    if isinstance(activation, str):
        check_name(activation)  # a clear error for an unknown name, before the cache sees it
        if activation in UNITS:
            inner, combine = UNITS[activation]
            return combine(_moments_by_name(inner, float(q)), float(q))
        return _moments_by_name(activation, float(q))
    if type(activation).__module__.startswith("torch.nn.") and not list(activation.parameters()):  # type: ignore[union-attr]
        return _moments_by_repr(_Same(activation), float(q))
    return quadrature(as_function(activation), float(q))


class _Same:
    """A torch module as a cache key: its repr holds all its settings."""

    def __init__(self, module: Activation) -> None:
        self.module, self.text = module, repr(module)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.text == other.text


@lru_cache(maxsize=65536)
def _moments_by_name(name: str, q: float) -> Moments:
    return quadrature(ACTIVATIONS[name], q)


@lru_cache(maxsize=4096)
def _moments_by_repr(same: _Same, q: float) -> Moments:
    return quadrature(as_function(same.module), q)


def forward_gain(activation: Activation, q: float = 1.0) -> float:
    """The ``sigma_w`` that keeps the variance of the signal: ``sigma_w^2 E[f(z)^2] = q``.

    ReLU gives sqrt(2) and SELU 1, as He and Klambauer have it. ``torch.nn.init.calculate_gain`` means the
    same for linear, ReLU and leaky ReLU. It does not for: tanh (torch 5/3, here 1.5925 at q = 1; both are
    chaotic, see ``init_gain``), sigmoid (torch 1, here 1.8462), SELU (torch 3/4, here 1).

    Example:
        >>> round(forward_gain("relu"), 4), round(forward_gain("selu"), 4), round(forward_gain("tanh"), 4)
        (1.4142, 1.0, 1.5925)

    Source: He et al. (2015), eq. 10, https://arxiv.org/abs/1502.01852
    """
    second = moments(activation, q).second
    if second == 0:
        raise ValueError(f"the activation is 0 everywhere at variance {q}: no gain can keep the signal")
    return math.sqrt(q / second)


def backward_gain(activation: Activation, q: float = 1.0) -> float:
    """The ``sigma_w`` that keeps the norm of the gradient: ``sigma_w^2 E[f'(z)^2] = 1``.

    Example:
        >>> round(backward_gain("relu"), 4), round(backward_gain("tanh"), 4)
        (1.4142, 1.4674)

    Source: He et al. (2015), eq. 14; Schoenholz et al. (2017), section 3, https://arxiv.org/abs/1611.01232
    """
    slope = moments(activation, q).slope
    if slope == 0:
        raise ValueError(f"the activation is flat at variance {q}: no gain can keep the gradient")
    return 1 / math.sqrt(slope)


def gated_gain(activation: Activation) -> float:
    """The ``sigma_w`` of both projections of a gated unit ``f(a) * b`` (SwiGLU, GEGLU, GLU) that gives unit output.

        g^2 E[f(z)^2] = 1,       a, b ~ N(0, g^2) independent

    Example:
        >>> round(gated_gain("silu"), 4)
        1.2688

    Source: the variance map applied to the units of Shazeer (2020), eq. 5 and 6,
    https://arxiv.org/abs/2002.05202
    """
    low, high = 1e-4, 1e4
    for _ in range(80):  # the left side grows with g, so bisection finds the one root
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle**2 * moments(activation, middle**2).second < 1 else (low, middle)
    return math.sqrt(low * high)


def init_gain(activation: Activation) -> float:
    """The gain that ``initialise`` gives a weight followed by this activation, with biases at 0.

    - Bounded (tanh, sigmoid, hardtanh, softsign, ReLU6): the gain of a small signal, ``1 / sqrt(E[f'^2])`` at
      q -> 0, as Glorot derives it: tanh 1, sigmoid 4, ReLU6 sqrt(2). For tanh this is the critical gain.
      ``torch.nn.init.calculate_gain`` says 5/3 for tanh, which lies in the chaotic phase: the gradient norm
      then grows 1.1 times per layer.
    - Others: ``forward_gain`` at q = 1: ReLU sqrt(2), SELU 1, GELU 1.5335, SiLU 1.6765, linear 1, MaxMin 1.
    - Gated units by name (swiglu, geglu, glu): ``gated_gain`` of the function in them.

    Example:
        >>> [round(init_gain(a), 4) for a in ("tanh", "sigmoid", "relu", "selu", "gelu")]
        [1.0, 4.0, 1.4142, 1.0, 1.5335]

    Source: Glorot & Bengio (2010), eq. 10 and 11, http://proceedings.mlr.press/v9/glorot10a.html; He et al.
    (2015), eq. 10
    """
    if isinstance(activation, str) and activation in GATED:
        return gated_gain(UNITS[activation][0])
    if is_bounded(activation):
        return backward_gain(activation, SMALL)
    return forward_gain(activation)


def is_bounded(activation: Activation) -> bool:
    """Whether it saturates on both sides, as tanh and sigmoid do."""
    # an unbounded one of slope 0.05 and more has above 1e3 there
    return moments(activation, 1e6).second < 1e3
