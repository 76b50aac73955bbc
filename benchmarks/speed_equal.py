"""Is a folded step the step after ``clip_grad_norm_``? Nothing is timed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from benchmarks.speed_rows import Effort, Row, row
from steadygrad.clip import FoldedClip

STEPS = 200
NEVER, SOMETIMES, OFTEN = 1e9, 0.5, 0.05
BROKEN = (0, 7, 8)  # steps with a gradient that is not finite; the first step has a path of its own in torch
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01, fused=True),
}


def trained(
    name: str, max_norm: float, *, folded: bool, broken: Collection[int] = (), left_out: Collection[int] = ()
) -> list[Tensor]:
    """Parameters and optimizer state after a training.

    Args:
        name: of the optimizer.
        max_norm: what the gradients are clipped to.
        folded: by :class:`FoldedClip`; else by ``clip_grad_norm_``, and the step is taken if the norm is finite.
        broken: in these steps one entry of a gradient is NaN.
        left_out: these steps are not taken at all; their batches are drawn.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
    params = list(model.parameters())
    optimizer = OPTIMIZERS[name](params)
    clip = FoldedClip(optimizer, max_norm)
    for i in range(STEPS):
        x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if i in broken:
            params[0].grad[0, 0] = math.nan
        if i in left_out:
            continue
        if folded:
            clip.step()
        elif clip_grad_norm_(params, max_norm).isfinite():
            optimizer.step()
    state = [value for p in params for value in optimizer.state[p].values()]
    return [t.detach() for t in params + [s for s in state if isinstance(s, Tensor)]]


def equality_rows(effort: Effort) -> list[Row]:
    """All of it, whatever the effort: seconds."""
    rows = []
    row_of = functools.partial(row, cadence=f"{STEPS} steps of a tanh MLP", rounds=STEPS)
    for name in OPTIMIZERS:
        apart = max(
            distance(trained(name, bound, folded=True), trained(name, bound, folded=False))
            for bound in (SOMETIMES, OFTEN)
        )
        free = different(trained(name, NEVER, folded=True), trained(name, NEVER, folded=False))
        skipped = sum(
            different(
                trained(name, bound, folded=True, broken=BROKEN),
                trained(name, bound, folded=True, left_out=BROKEN),
            )
            for bound in (NEVER, SOMETIMES)
        )
        rows += [
            row_of(
                f"{name}: folded from clip_grad_norm_ + step",
                apart,
                goal=1e-6,
                unit="relative, norm of a tensor",
            ),
            row_of(f"{name}: folded from the plain step, no step clipped", free, goal=0, unit="tensors"),
            row_of(f"{name}: what skipped steps leave behind", skipped, goal=0, unit="tensors"),
        ]
    return rows


def distance(ours: list[Tensor], others: list[Tensor]) -> float:
    """The largest ``||a - b|| / ||b||`` over the tensors that differ."""
    pairs = ((a.double(), b.double()) for a, b in zip(ours, others, strict=True) if not torch.equal(a, b))
    return max((float((a - b).norm() / b.norm()) for a, b in pairs), default=0.0)


def different(ours: list[Tensor], others: list[Tensor]) -> int:
    """Tensors that are not equal bit for bit."""
    return sum(not torch.equal(a, b) for a, b in zip(ours, others, strict=True))
