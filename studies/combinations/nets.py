"""Three nets whose parts can be left out: a deep MLP, stacked LSTMs, a small Transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from steadygrad.nn.residual import Residual
from studies.common import CLASSES


def _wrapped(fn: nn.Module, width: int, norm: bool, residual: bool, dropout: float) -> nn.Module:
    """A block with or without a norm before it, a skip around it, and dropout behind it."""
    if residual:
        return Residual(fn, width, placement="pre" if norm else None, dropout=dropout)
    return nn.Sequential(nn.LayerNorm(width) if norm else nn.Identity(), fn, nn.Dropout(dropout))


class First(nn.Module):
    """The outputs of a recurrent layer, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Attention(nn.Module):
    """Self-attention whose weights are plain layers."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Rows(nn.Module):
    """A digit as a sequence of patches, with a learned place for each."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length = length
        self.embed = nn.Linear(64 // length, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x.unflatten(-1, (self.length, -1))) + self.place


class Mean(nn.Module):
    """The mean over the sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Last(nn.Module):
    """The last step of the sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def mlp(norm: bool, residual: bool, dropout: float, depth: int = 24, width: int = 64) -> nn.Module:
    """24 blocks of one layer and ReLU."""
    blocks = [
        _wrapped(nn.Sequential(nn.Linear(width, width), nn.ReLU()), width, norm, residual, dropout)
        for _ in range(depth)
    ]
    return nn.Sequential(nn.Linear(64, width), *blocks, nn.Linear(width, CLASSES))


def lstm(norm: bool, residual: bool, dropout: float, depth: int = 4, width: int = 32) -> nn.Module:
    """4 LSTM layers over the digit in 16 steps of four pixels, read off at the last step."""
    blocks = [
        _wrapped(First(nn.LSTM(width, width, batch_first=True)), width, norm, residual, dropout)
        for _ in range(depth)
    ]
    return nn.Sequential(Rows(16, width), *blocks, Last(), nn.Linear(width, CLASSES))


def transformer(norm: bool, residual: bool, dropout: float, depth: int = 8, width: int = 32) -> nn.Module:
    """8 layers of attention and feed-forward over the digit in 8 rows."""
    blocks: list[nn.Module] = []
    for _ in range(depth):
        feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        blocks += [_wrapped(f, width, norm, residual, dropout) for f in (Attention(width, 4), feed)]
    return nn.Sequential(Rows(8, width), *blocks, Mean(), nn.Linear(width, CLASSES))


NETS: dict[str, Callable[..., nn.Module]] = {"MLP": mlp, "LSTM": lstm, "Transformer": transformer}
