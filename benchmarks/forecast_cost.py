"""What `sg.forecast` costs for a Transformer of 25M parameters on two threads, against one of its training steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import steadygrad as sg
from benchmarks.speed_transformer import BATCH, LENGTH, VOCABULARY, Transformer

STEPS_BAR, SECONDS_BAR = 15, 20.0  # whichever is larger
TIMED = 3  # plain steps before the forecast, and again after it


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]).transpose(1, 2), batch[1])


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

    def step() -> None:
        optimizer.zero_grad()
        loss(model, batch).backward()
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
