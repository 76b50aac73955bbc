"""The table of the conformance suite: one line for each recurrent layer, with a plain float64 loop as its twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from steadygrad.nn.recurrent import LRU, AntisymmetricRNN, IndRNN, OrthogonalRNN, recurrent_bound

Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (x, h) to (y, h)


def array(t: Any) -> np.ndarray:
    return t.detach().double().numpy() if not t.is_complex() else t.detach().numpy().astype(np.complex128)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def orthogonal_step(layer: Any, nonlinearity: str) -> Step:
    w, q = array(layer.weight_ih), array(layer.weight_hh)
    b = 0.0 if layer.bias is None else array(layer.bias)

    def modrelu(z):
        shift = array(layer.activation.bias)
        return np.where(np.abs(z) + shift >= 0, (np.abs(z) + shift) * np.where(z < 0, -1, 1), 0.0)

    f = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0), "modrelu": modrelu}[nonlinearity]
    return lambda x, h: (f(w @ x + b + q @ h),) * 2


def lru_step(layer: Any) -> Step:
    nu, theta, gamma = (array(p) for p in (layer.nu_log, layer.theta_log, layer.gamma_log))
    lam = np.exp(-np.exp(nu) + 1j * np.exp(theta))
    b = array(layer.b_real) + 1j * array(layer.b_imag)
    c = array(layer.c_real) + 1j * array(layer.c_imag)

    def step(u, x):
        x = lam * x + np.exp(gamma) * (b @ u)
        return (c @ x).real + array(layer.d) @ u, x

    return step


def antisymmetric_step(layer: Any) -> Step:
    v, w, n = array(layer.weight_ih), array(layer.weight_hh), layer.state_size
    b = array(layer.bias)
    m = w - w.T - layer.gamma * np.eye(n)

    def step(x, h):
        size = np.tanh(m @ h + v[:n] @ x + b[:n])
        if layer.gated:
            size = size * sigmoid(m @ h + v[n:] @ x + b[n:])
        h = h + layer.eps * size
        return h, h

    return step


def independent_step(layer: Any) -> Step:
    w, u, b = array(layer.weight_ih), array(layer.weight_hh), array(layer.bias)
    return lambda x, h: (np.maximum(w @ x + u * h + b, 0),) * 2


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., nn.Module]  # (input_size, hidden_size, **settings)
    step: Callable[[Any], Step]  # of one layer
    growth: tuple[float, float]  # of the norm of a gradient over 500 steps
    stacks: bool = True  # num_layers and dropout


LAYERS = (
    Case(
        "orthogonal_modrelu", OrthogonalRNN, partial(orthogonal_step, nonlinearity="modrelu"), (0.999, 1.001)
    ),
    Case(
        "orthogonal_tanh",
        partial(OrthogonalRNN, nonlinearity="tanh", orthogonal_map="cayley"),
        partial(orthogonal_step, nonlinearity="tanh"),
        (0.0, 1.0),
    ),
    Case(
        "orthogonal_relu",
        partial(OrthogonalRNN, nonlinearity="relu", orthogonal_map="householder"),
        partial(orthogonal_step, nonlinearity="relu"),
        (0.0, 1.0),
    ),
    Case(
        "lru",
        partial(LRU, r_min=0.999, r_max=0.9999),
        lru_step,
        (0.999**500, 1.0),
        stacks=False,
    ),
    Case("antisymmetric", AntisymmetricRNN, antisymmetric_step, (0.3, math.e)),
    Case("antisymmetric_gated", partial(AntisymmetricRNN, gated=True), antisymmetric_step, (0.3, math.e)),
    Case("independent", partial(IndRNN, bound=recurrent_bound(500)), independent_step, (0.0, 2.0)),
)
