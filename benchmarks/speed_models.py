"""What speed is measured on: models of 1M, 25M and 117M parameters, and a training step of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed_transformer import Transformer, next_token_loss, sequences


class ResidualMLP(nn.Module):
    """``depth`` square layers, each beside a shortcut."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) / len(self.layers)
        return x


@dataclass(frozen=True)
class Workload:
    """A model, and the loss of a new batch."""

    says: str  # for people; ``Workload.cadence`` of a step's batch
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]


def mlp(depth: int, width: int, batch: int) -> Workload:
    def loss(model: nn.Module) -> Tensor:
        x = torch.randn(batch, width)
        return F.mse_loss(model(x), x.roll(1, dims=1))

    says = f"residual MLP of {depth} layers of {width}, batch {batch}"
    return Workload(says, lambda: ResidualMLP(depth, width), loss)


WORKLOADS = {
    "1M": mlp(100, 100, 512),
    "25M": Workload(
        "Transformer of 12 layers of 384, batch 4 of 128 tokens",
        Transformer,
        lambda model: next_token_loss(model, sequences()),
    ),
    "117M": mlp(7, 4096, 64),
    "tiny": mlp(2, 8, 4),  # for the tests
}


@dataclass
class Training:
    """A model and its optimizer; ``step`` takes one step on a new batch."""

    model: nn.Module
    optimizer: Optimizer
    step: Callable[[], object]


def plain_update(model: nn.Module, optimizer: Optimizer) -> Callable[[], object]:
    return lambda: optimizer.step()  # looked up at each step: whoever watches puts another in its place


def training(
    workload: Workload,
    make: Callable[[Any], Optimizer] = lambda params: torch.optim.AdamW(params, lr=1e-4, fused=True),
    update: Callable[[nn.Module, Optimizer], Callable[[], object]] = plain_update,
) -> Training:
    """A training that starts from seed 0.

    Args:
        workload: what is trained.
        make: the optimizer of its parameters.
        update: what a step does after the backward pass; called once.
    """
    torch.manual_seed(0)
    model = workload.build()
    optimizer = make(model.parameters())
    act = update(model, optimizer)

    def step() -> None:
        loss = workload.loss(model)
        optimizer.zero_grad()
        loss.backward()
        act()

    return Training(model, optimizer, step)
