"""A pre-norm Transformer of 25M parameters that learns to continue made-up sequences. A plain script: nothing here
knows of steadygrad, and no gradient is clipped.

    python benchmarks/speed_transformer.py [--steps 200] [--seed 0]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH, BATCH = 4608, 128, 4
WIDTH, DEPTH, HEADS = 384, 12, 6


class Transformer(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary), T at most ``length``."""

    def __init__(
        self,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        vocabulary: int = VOCABULARY,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places
        for block in self.blocks:
            h = block(h, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h))


def sequences(batch: int = BATCH, length: int = LENGTH, vocabulary: int = VOCABULARY) -> Tensor:
    """Token ids (batch, length + 1): each follows from the one before, but for one in ten that is drawn anew."""
    columns = [torch.randint(vocabulary, (batch,))]
    for _ in range(length):
        drawn, follows = torch.randint(vocabulary, (batch,)), (5 * columns[-1] + 17) % vocabulary
        columns.append(torch.where(torch.rand(batch) < 0.1, drawn, follows))
    return torch.stack(columns, dim=1)


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(args.steps):
        loss = next_token_loss(model, sequences())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == args.steps - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
