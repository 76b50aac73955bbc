"""Feed-forward networks with knobs: depth, activation, gain, norm, residual adds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# the gain that keeps the variance of signals about constant through many layers
CRITICAL_GAIN: dict[type[nn.Module], float] = {
    nn.ReLU: math.sqrt(2),
    nn.GELU: 1.5,
    nn.SiLU: 1.6,
    nn.Tanh: 1.0,
    nn.Sigmoid: 4.0,
    nn.Identity: 1.0,
}


def start_weights(module: nn.Linear | nn.Conv2d, gain: float, orthogonal: bool = False) -> None:
    """Weights of variance gain^2 / fan_in (or orthogonal, times gain), bias 0."""
    if orthogonal:
        nn.init.orthogonal_(module.weight, gain)
    else:
        nn.init.normal_(module.weight, 0.0, gain / math.sqrt(module.weight[0].numel()))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class MLPBlock(nn.Module):
    """linear, norm, activation; with ``residual`` x + activation(linear(norm(x)))."""

    def __init__(
        self, width: int, activation: type[nn.Module], norm: type[nn.Module] | None, residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm: nn.Module = nn.Identity() if norm is None else norm(width)  # type: ignore[call-arg]
        self.activation = activation()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        if self.residual:
            return x + self.activation(self.linear(self.norm(x)))
        return self.activation(self.norm(self.linear(x)))


class MLP(nn.Module):
    """(B, inputs) to (B, outputs): ``first``, ``depth`` hidden blocks, ``last``.

    ``gain`` is that of the blocks, by default the critical one of the activation; the first layer always has the
    critical one and the last one gain 1.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        depth: int,
        outputs: int,
        activation: type[nn.Module] = nn.ReLU,
        gain: float | None = None,
        norm: type[nn.Module] | None = None,
        residual: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.activation = activation()
        self.blocks = nn.ModuleList(MLPBlock(width, activation, norm, residual) for _ in range(depth))
        self.last = nn.Linear(width, outputs)
        critical = CRITICAL_GAIN[activation]
        start_weights(self.first, critical)
        start_weights(self.last, 1.0)
        for block in self.blocks:
            start_weights(block.linear, critical if gain is None else gain, orthogonal)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class ConvBlock(nn.Module):
    """3 x 3 convolution, norm, ReLU; with ``residual`` added to its input."""

    def __init__(self, channels: int, norm: bool, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return x + y if self.residual else y


class CNN(nn.Module):
    """(B, 64), read as one 8 x 8 plane, to (B, outputs): ``first``, ``depth`` blocks, pooled to 4 x 4, ``last``."""

    def __init__(
        self,
        channels: int,
        depth: int,
        outputs: int = 10,
        norm: bool = False,
        residual: bool = False,
        gain: float | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(channels, norm, residual) for _ in range(depth))
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Linear(16 * channels, outputs)
        start_weights(self.first, math.sqrt(2))
        start_weights(self.last, 1.0)
        for block in self.blocks:
            start_weights(block.conv, math.sqrt(2) if gain is None else gain)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.view(-1, 1, 8, 8)))
        for block in self.blocks:
            x = block(x)
        return self.last(self.pool(x).flatten(1))


class Appended(nn.Module):
    """A network and something after it, under the names ``net`` and ``after``."""

    def __init__(self, net: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.after = after

    def forward(self, *args: Any) -> Any:
        return self.after(self.net(*args))
