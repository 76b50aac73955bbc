"""What the builders share: the types of their arguments, and scales and gates made for a width."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from steadygrad._check import count, fraction
from steadygrad.nn.residual._factory import factory
from steadygrad.nn.residual.drop_path import drop_path_rates
from steadygrad.nn.residual.residual import Placement, Residual
from steadygrad.nn.residual.scale import SkipInit

Activation = Callable[[], nn.Module]  # a module class or a factory without arguments
Norm = Callable[..., nn.Module]  # makes a norm from a number of channels
Scale = float | Callable[..., nn.Module]  # a number, SkipInit, or a factory called as (channels, dim=)
Gate = Callable[..., nn.Module]  # makes a gate from a number of channels


def make_scale(scale: Scale, channels: int, dim: int = -1) -> float | nn.Module:
    if isinstance(scale, (int, float)):
        return scale
    factory("scale", scale)
    made = scale.func if isinstance(scale, functools.partial) else scale
    return scale() if made is SkipInit else scale(channels, dim=dim)


def residual(
    fn: nn.Module,
    channels: int,
    *,
    placement: Placement | None,
    norm: Norm,
    scale: Scale,
    gate: Gate | None,
    **options: Any,
) -> Residual:
    """A residual connection on the last dimension."""
    return Residual(
        fn,
        channels,
        placement=placement,
        norm=norm,
        scale=make_scale(scale, channels),
        gate=None if gate is None else gate(channels),
        **options,
    )


def block_rates(depth: int, drop_path: float) -> list[float]:
    """The rate of stochastic depth of each block; there must be one block."""
    count("depth", depth)
    return drop_path_rates(depth, fraction("drop_path", drop_path))


def check_factories(**made: object) -> None:
    for name, value in made.items():
        if value is not None:
            factory(name, value)


def ends_without_norm(placement: Placement | None) -> bool:
    """Whether the stream after the last block has not been normalised, and should be before the head."""
    return placement in ("pre", "sandwich")
