"""Further sequences and nets over them: what a recurrent net must hold, recurrences by hand, other attentions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.data import Data, split
from benchmarks.zoo.draws import generator
from benchmarks.zoo.sequence_nets import TransformerLM


def first_sign(seed: int, length: int) -> Data:
    """The sign at the first of ``length`` steps, held through noise: x (B, length, 2), y (B, 1), variance 1."""
    x = 0.3 * torch.randn(1000, length, 2, generator=generator(seed, 53))
    sign = torch.randint(0, 2, (1000, 1), generator=generator(seed, 59)) * 2.0 - 1.0
    x[:, 0, 0] += sign[:, 0]
    return split(x, sign, test=128)


def waves(seed: int, length: int) -> Data:
    """Sines of several speeds and what comes next: x (B, length, 1), y (B, 1), amplitude 1, a little noise."""
    g = generator(seed, 61)
    phase = 2 * math.pi * torch.rand(1000, 1, generator=g)
    speed = 0.2 + 0.4 * torch.rand(1000, 1, generator=g)
    x = torch.sin(phase + speed * torch.arange(length + 1.0))
    x = x + 0.05 * torch.randn(x.shape, generator=g)
    return split(x[:, :-1, None], x[:, -1:], test=128)


class CellLoop(nn.Module):
    """``nn.RNNCell`` called in a loop, read out at the end."""

    def __init__(self, width: int, gain: float, nonlinearity: str) -> None:
        super().__init__()
        self.cell = nn.RNNCell(2, width, nonlinearity=nonlinearity)
        self.head = nn.Linear(width, 1)
        nn.init.orthogonal_(self.cell.weight_hh, gain)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


class MatrixLoop(nn.Module):
    """The recurrence tanh(x W + h U + b) with parameters of its own."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.w = nn.Parameter(0.5 * torch.randn(2, width))
        self.u = nn.Parameter(nn.init.orthogonal_(torch.empty(width, width), gain))
        self.b = nn.Parameter(torch.zeros(width))
        self.v = nn.Parameter(torch.randn(width, 1) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), len(self.b))
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] @ self.w + h @ self.u + self.b)
        return h @ self.v


class SharedLayer(nn.Module):
    """One linear layer called ``times`` times on the same state: an iterative net on (B, 20)."""

    def __init__(self, width: int, times: int, gain: float) -> None:
        super().__init__()
        self.read = nn.Linear(20, width)
        self.step = nn.Linear(width, width)
        self.head = nn.Linear(width, 1)
        self.times = times
        nn.init.orthogonal_(self.step.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        for _ in range(self.times):
            h = F.leaky_relu(self.step(h), 0.5)
        return self.head(h)


class EulerODE(nn.Module):
    """dh/dt = f(h), solved by ``steps`` Euler steps from 0 to ``time``; ``growth`` is added to every rate of f."""

    def __init__(self, width: int, steps: int, time: float, growth: float) -> None:
        super().__init__()
        self.read = nn.Linear(20, width)
        self.field = nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, width))
        self.head = nn.Linear(width, 1)
        self.steps, self.time = steps, time
        nn.init.normal_(self.field[0].weight, 0, 1 / math.sqrt(width))
        with torch.no_grad():
            self.field[2].weight.copy_(growth * self.field[0].weight.T)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        for _ in range(self.steps):
            h = h + self.time / self.steps * self.field(h)
        return self.head(h)


class FusedAttention(nn.Module):
    """Causal self-attention by ``F.scaled_dot_product_attention``, queries, keys and values from one layer."""

    def __init__(self, width: int, heads: int, qk_gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.qkv.weight, 0, 1 / math.sqrt(width))
        with torch.no_grad():
            self.qkv.weight[: 2 * width] *= qk_gain

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class TorchAttention(nn.Module):
    """Causal self-attention by ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, qk_gain: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight[: 2 * width] *= qk_gain

    def forward(self, x: Tensor) -> Tensor:
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=future, need_weights=False)[0]


def with_attention(model: TransformerLM, make: Callable[[int, int], nn.Module]) -> TransformerLM:
    """The model with another attention, ``make(width, heads)``, in each block."""
    for block in model.blocks:
        block.attention = make(block.attention.q.in_features, block.attention.heads)
    return model
