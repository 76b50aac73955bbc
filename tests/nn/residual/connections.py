"""The table of the conformance suite: one line for each connection. A new one joins the suite by a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steadygrad.nn import residual as r
from tests.nn.residual import oracles

D = 6


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    twin: Callable[..., np.ndarray]  # (module, *inputs), in float64
    shapes: tuple[tuple[int, ...], ...] = ((5, D),)
    out: tuple[int, ...] | None = None  # of the output, if not that of the first input

    def module(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """In eval mode, with every parameter moved off its start, so that none is a tame 0 or 1."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.make().to(dtype).eval()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.3 * torch.randn_like(parameter)
        return module

    def inputs(
        self, seed: int = 1, dtype: torch.dtype = torch.float32, batch: int | None = None
    ) -> list[Tensor]:
        g = torch.Generator().manual_seed(seed)
        shapes = [s if batch is None else (batch, *s[1:]) for s in self.shapes]
        return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def _residual(**options: Any) -> Callable[[], nn.Module]:
    return lambda: r.Residual(nn.Linear(D, D), D, **options)


def _gate(cls: type[nn.Module], twin: Callable[..., np.ndarray]) -> Case:
    return Case(cls.__name__, lambda: cls(D), twin, ((5, D), (5, D)))


CONNECTIONS = (
    Case("pre", _residual(placement="pre"), oracles.residual),
    Case("post", _residual(placement="post"), oracles.residual),
    Case("sandwich", _residual(placement="sandwich"), oracles.residual),
    Case("no_norm", lambda: r.Residual(nn.Linear(D, D), placement=None), oracles.residual),
    Case("fixed_scale", _residual(placement="pre", scale=0.25), oracles.residual),
    Case(
        "skipinit", lambda: r.Residual(nn.Linear(D, D), placement=None, scale=r.SkipInit()), oracles.residual
    ),
    Case("layer_scale", lambda: _residual(placement="sandwich", scale=r.LayerScale(D))(), oracles.residual),
    Case(
        "deepnorm",
        _residual(placement="post", skip_scale=2.5),
        partial(oracles.residual, skip_scale=2.5),
    ),
    Case(
        "drop_path", _residual(drop_path=0.5, dropout=0.5), oracles.residual
    ),  # off: the suite is in eval mode
    Case("highway_linear", lambda: r.highway_linear(D, activation=nn.Tanh), oracles.highway_linear),
    Case(
        "highway_conv2d",
        lambda: r.highway_conv2d(3, activation=nn.Tanh),
        oracles.highway_conv2d,
        ((2, 3, 4, 5),),
    ),
    Case(
        "dense_block",
        lambda: r.DenseBlock([nn.Linear(D + 2 * i, 2) for i in range(3)], dim=-1),
        oracles.dense_block,
        out=(5, D + 6),
    ),
    Case(
        "dense_block_recomputed",
        lambda: r.DenseBlock([nn.Linear(D + 2 * i, 2) for i in range(3)], dim=-1, memory_efficient=True),
        oracles.dense_block,
        out=(5, D + 6),
    ),
    _gate(r.GRUGate, oracles.gru_gate),
    _gate(r.InputGate, oracles.input_gate),
    _gate(r.OutputGate, oracles.output_gate),
    _gate(r.HighwayGate, oracles.highway_gate),
    _gate(r.SigmoidTanhGate, oracles.sigmoid_tanh_gate),
    Case(
        "hyper_static",
        lambda: r.HyperConnection(nn.Linear(D, D), D, num_streams=3, layer_index=4, dynamic=False),
        oracles.hyper,
        ((5, 3, D),),
    ),
    Case(
        "hyper_dynamic",
        lambda: r.HyperConnection(nn.Linear(D, D), D, num_streams=3),
        oracles.hyper,
        ((5, 3, D),),
    ),
)
