"""What `sg.forecast` costs for a Transformer of 25M parameters on two threads, against one of its training steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import steadygrad as sg

WIDTH, DEPTH, HEADS, VOCABULARY = 384, 12, 6, 4608
BATCH, LENGTH = 4, 128
STEPS_BAR, SECONDS_BAR = 15, 20.0  # whichever is larger
TIMED = 3  # plain steps before the forecast, and again after it


class Transformer(nn.Module):
    """A pre-norm language model."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places
        for block in self.blocks:
            h = block(h, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h)).transpose(1, 2)


def cost_of_transformer() -> dict[str, Any]:
    """Seconds of a forecast, plain steps timed right before and after it, their ratio, and whether the bar holds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return _measured()
    finally:
        torch.set_num_threads(threads)


def _measured() -> dict[str, Any]:
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1))
    batch = tokens[:, :-1], tokens[:, 1:]
    loss = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(batch[0]), batch[1]).backward()
        optimizer.step()

    step()
    steps = [_seconds(step) for _ in range(TIMED)]
    forecast = _seconds(lambda: sg.forecast(model, loss, batch, optimizer))
    steps += [_seconds(step) for _ in range(TIMED)]
    bar = max(SECONDS_BAR, STEPS_BAR * median(steps))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "forecast_seconds": forecast,
        "step_seconds": median(steps),
        "steps": forecast / median(steps),
        "bar_seconds": bar,
        "beaten": forecast <= bar,
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
