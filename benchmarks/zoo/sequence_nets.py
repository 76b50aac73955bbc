"""A recurrent network and a small Transformer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["pre", "post", "none"]


class Recurrent(nn.Module):
    """(B, T, inputs) to (B, outputs) of the last step, or (B, T, outputs) with ``every_step``.

    ``cell`` is nn.RNN, nn.LSTM or nn.GRU, or a call that makes one (``partial(nn.RNN, nonlinearity="relu")``).
    Recurrent matrices are orthogonal times ``gain``, input ones N(0, 1/(4 inputs)), biases 0.
    """

    def __init__(
        self, inputs: int, width: int, outputs: int, cell=nn.LSTM, gain: float = 1.0, every_step: bool = False
    ) -> None:
        super().__init__()
        self.rnn = cell(inputs, width, batch_first=True)
        self.last = nn.Linear(width, outputs)
        self.every_step = every_step
        for name, parameter in self.rnn.named_parameters():
            if "weight_hh" in name:
                for gate in parameter.detach().split(width):
                    nn.init.orthogonal_(gate, gain)
            elif "weight_ih" in name:
                nn.init.normal_(parameter, 0.0, 0.5 / math.sqrt(inputs))
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.last(states if self.every_step else states[:, -1])


class Attention(nn.Module):
    """Causal self-attention, (B, T, D) to (B, T, D). ``qk_gain`` scales the start of queries and keys."""

    def __init__(self, width: int, heads: int, qk_gain: float = 1.0) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.softmax = nn.Softmax(-1)
        for layer, gain in ((self.q, qk_gain), (self.k, qk_gain), (self.v, 1.0), (self.out, 1.0)):
            nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (  # (B, H, T, D / H)
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = self.softmax(logits.masked_fill(future, -math.inf))
        return self.out((weights @ v).transpose(1, 2).flatten(-2))


class TransformerBlock(nn.Module):
    """Attention and a GELU MLP, each added to the stream; LayerNorm before, after the add, or nowhere."""

    def __init__(
        self, width: int, heads: int, norm: Norm = "pre", qk_gain: float = 1.0, branch_gain: float = 1.0
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = Attention(width, heads, qk_gain)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm1 = nn.Identity() if norm == "none" else nn.LayerNorm(width)
        self.norm2 = nn.Identity() if norm == "none" else nn.LayerNorm(width)
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, 0.0, 1.4 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.mlp[2].weight.mul_(branch_gain)
            self.attention.out.weight.mul_(branch_gain)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "post":
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TransformerLM(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary), causal. ``branch_gain`` scales what each branch adds at the start."""

    def __init__(
        self,
        vocabulary: int = 16,
        width: int = 32,
        heads: int = 2,
        depth: int = 3,
        length: int = 16,
        norm: Norm = "pre",
        qk_gain: float = 1.0,
        branch_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.5 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, norm, qk_gain, branch_gain) for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.last = nn.Linear(width, vocabulary)
        nn.init.normal_(self.last.weight, 0.0, 0.5 / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        z = self.embedding(x) + self.position[: x.shape[1]]
        for block in self.blocks:
            z = block(z)
        return self.last(self.final_norm(z))
