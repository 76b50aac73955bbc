"""The table of the conformance suite: one line for each optimizer. A new one joins the suite by a line here."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steadygrad import optim
from steadygrad.optim._step import LayerwiseOptimizer
from tests.optim import oracles

SHAPES = [(6, 4), (4,), (3, 4, 2, 2), (), (5, 8)]


@functools.cache
def _draw(seed: int, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def draw(seed: int, dtype: torch.dtype = torch.float32, shapes=tuple(SHAPES)) -> list[Tensor]:
    return [d.to(dtype, copy=True) for d in _draw(seed, tuple(shapes))]


def parameters(dtype: torch.dtype = torch.float32, shapes=tuple(SHAPES)) -> list[Tensor]:
    return [torch.nn.Parameter(w) for w in draw(7, dtype, shapes)]


def arrays(tensors) -> list[np.ndarray]:
    return [t.detach().double().numpy().copy() for t in tensors]


def give(params, grads) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()


@dataclass(frozen=True)
class Case:
    name: str
    cls: type[LayerwiseOptimizer]
    twin: type[oracles.Twin]
    settings: dict[str, Any] = field(default_factory=dict)
    bound: float = math.inf  # of ||dw|| / ||w|| in every layer of `Exploding`; inf: not asked
    complex: bool = True
    matrices: bool = False  # a layer's step goes through Newton-Schulz
    decay: bool = True  # has weight_decay
    bad: dict[str, Any] = field(default_factory=dict)  # one bad setting for each name

    def make(self, params, **changed: Any) -> LayerwiseOptimizer:
        return self.cls(params, **{**self.settings, **changed})

    def make_twin(self, params, **changed: Any) -> oracles.Twin:
        made = self.make([torch.nn.Parameter(p.detach().clone()) for p in params], **changed)
        return self.twin(arrays(params), **made.defaults)


OPTIMIZERS = (
    Case(
        "lars",
        optim.LARS,
        oracles.LARS,
        {"lr": 0.01, "trust_coefficient": 0.1, "weight_decay": 0.1, "adapt_vectors": True},
        bound=0.0101,  # lr eta / (1 - momentum)
        bad={"momentum": 1.0, "weight_decay": -0.1, "trust_coefficient": 0.0, "min_rms": -1.0},
    ),
    Case(
        "lars_plain_vectors",
        optim.LARS,
        oracles.LARS,
        {"lr": 0.5, "weight_decay": 0.01, "momentum": 0.8},
    ),
    Case(
        "lamb",
        optim.LAMB,
        oracles.LAMB,
        {"lr": 0.01, "weight_decay": 0.1, "adapt_vectors": True},
        bound=0.010001,  # lr
        bad={"betas": (0.9, 1.0), "eps": 0.0, "weight_decay": -1.0, "min_rms": -1.0, "max_norm": 0.0},
    ),
    Case("lamb_clamped", optim.LAMB, oracles.LAMB, {"lr": 0.01, "max_norm": 2.0, "eps": 1e-3}),
    Case(
        "novograd",
        optim.NovoGrad,
        oracles.NovoGrad,
        {"lr": 0.01, "weight_decay": 0.01},
        bound=0.008,  # lr / (1 - beta1) = 0.2 in L2, and ||w|| = 28
        bad={"betas": (1.0, 0.9), "eps": -1.0, "weight_decay": math.nan},
    ),
    Case(
        "fromage",
        optim.Fromage,
        oracles.Fromage,
        {"lr": 0.01},
        bound=0.0101,  # lr
        decay=False,
        bad={"min_rms": -1.0},
    ),
    Case(
        "nero",
        optim.Nero,
        oracles.Nero,
        {"lr": 0.01},
        bound=0.045,  # lr sqrt(steps), if the gradient grows in every one; else about lr
        complex=False,
        decay=False,
        bad={"beta": 1.0},
    ),
    Case(
        "nero_free",
        optim.Nero,
        oracles.Nero,
        {"lr": 0.01, "constraints": False, "beta": 0.9},
        bound=0.045,  # lr sqrt(steps), if the gradient grows in every one; else about lr
        complex=False,
        decay=False,
    ),
    Case(
        "adam_atan2",
        optim.AdamAtan2,
        oracles.AdamAtan2,
        {"lr": 0.01, "weight_decay": 0.1},
        bound=0.025,  # lr (a pi / 2 / RMS(w) + weight_decay)
        bad={"betas": (0.9,), "weight_decay": -1.0, "a": 0.0, "b": -1.0},
    ),
    Case(
        "muon_adamw",
        optim.MuonAdamW,
        oracles.MuonAdamW,
        {"lr": 0.01},
        bound=0.005,  # lr (0.2 / RMS(w) + weight_decay), Newton-Schulz 30 % more
        complex=False,
        matrices=True,
        bad={
            "momentum": 1.0,
            "weight_decay": -1.0,
            "ns_steps": 0,
            "betas": (0.9, 2.0),
            "eps": 0.0,
            "adjust_lr_fn": "mine",
            "algorithm": "sgd",
        },
    ),
    Case(
        "muon_original",
        optim.MuonAdamW,
        oracles.MuonAdamW,
        {"lr": 0.01, "adjust_lr_fn": "original", "nesterov": False, "weight_decay": 0.0},
        complex=False,
        matrices=True,
    ),
    Case(
        "scion",
        optim.Scion,
        oracles.Scion,
        {"lr": 0.01, "scale": 1.0},
        bound=0.003,  # lr sqrt(32) / 28, Newton-Schulz 30 % more
        complex=False,
        matrices=True,
        decay=False,
        bad={"momentum": -0.1, "scale": 0.0, "norm": "mine"},
    ),
    Case(
        "scion_constrained",
        optim.Scion,
        oracles.Scion,
        {"lr": 0.01, "scale": 2.0, "constrained": True, "momentum": 0.5},
        complex=False,
        matrices=True,
        decay=False,
    ),
    Case(
        "steady",
        optim.Steady,
        oracles.Steady,
        {"lr": 0.01, "weight_decay": 0.1},
        bound=0.0125,  # lr, and of a vector up to what Adam's direction is longer than 1
        complex=False,
        matrices=True,
        bad={
            "momentum": 1.0,
            "weight_decay": -1.0,
            "betas": (0.9, 2.0),
            "eps": 0.0,
            "role": "mine",
            "blocks": 4,
            "max_ratio": 0.0,
            "max_growth": 0.5,
            "min_scale": -1.0,
            "ns_steps": 0,
        },
    ),
    Case(
        "steady_free",
        optim.Steady,
        oracles.Steady,
        {"lr": 0.05, "max_ratio": math.inf, "max_growth": math.inf, "momentum": 0.5},
        complex=False,
        matrices=True,
    ),
)


NUM_STEPS = 20


def over(cases=OPTIMIZERS):
    return pytest.mark.parametrize("case", cases, ids=lambda c: c.name)


def run(optimizer, params, steps, dtype=torch.float32) -> None:
    for step in steps:
        give(params, draw(100 + step, dtype))
        optimizer.step()


def everything(optimizer) -> list:
    """Every number of the state, and that it is the same kind of number."""
    return [
        (i, key, value.dtype, value.shape, value.tolist())
        if isinstance(value, torch.Tensor)
        else (i, key, value)
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    ]


def same(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
