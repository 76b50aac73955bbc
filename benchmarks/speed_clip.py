"""What clipping costs, and clipping with the default monitor: optimizer steps on gradients that are given.

Forward and backward pass are left out. The gradients are written anew before each call, outside the clock, as a
backward pass would. All candidates share parameters and gradients; each has its own optimizer state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from benchmarks.speed_clock import beyond, interleave, ratio, typical
from benchmarks.speed_models import WORKLOADS
from benchmarks.speed_monitor import YOUNG, Monitor
from benchmarks.speed_rows import Effort, Row, row
from steadygrad.clip import FoldedClip

IMPLEMENTATIONS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False, "fused": False},  # torch's default on a CPU
}
LARGE = ("25M", "117M")  # where bars on the ratio to AdamW are set


class Given:
    """A model with gradients that do not change.

    Attributes:
        norm: of all gradients together.
    """

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = WORKLOADS[size].build()
        self.params: list[Tensor] = list(self.model.parameters())
        self._kept = [1e-3 * torch.randn_like(p) for p in self.params]
        for p, g in zip(self.params, self._kept, strict=True):
            p.grad = g.clone()
        self.norm = math.sqrt(sum(float(g.square().sum()) for g in self._kept))
        self.says = f"{sum(p.numel() for p in self.params):,} parameters in {len(self.params)} tensors"

    def put_back(self) -> None:
        """Write the gradients anew."""
        torch._foreach_copy_([p.grad for p in self.params], self._kept)

    def adamw(self, **settings: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.params, lr=1e-6, **settings)


def clip_rows(size: str, effort: Effort) -> list[Row]:
    given = Given(size)
    bound = {"no step clipped": 2 * given.norm, "every step clipped": given.norm / 2}
    plain = {name: given.adamw(**settings) for name, settings in IMPLEMENTATIONS.items()}
    watched = given.adamw(fused=True)
    monitor = Monitor(given.model)
    listening = partial(monitor.listening, watched)

    def clip() -> Tensor:
        return clip_grad_norm_(given.params, bound["no step clipped"])

    def clip_and_step(optimizer: Optimizer) -> None:
        clip()
        optimizer.step()

    calls: dict[str, Callable[[], object]] = {"clip": clip, "clip, watched": partial(clip_and_step, watched)}
    around = {"clip, watched": listening}
    for name, optimizer in plain.items():
        calls |= {name: optimizer.step, f"clip + {name}": partial(clip_and_step, optimizer)}
    for says, max_norm in bound.items():
        calls[f"folded, {says}"] = FoldedClip(plain["fused"], max_norm).step
        calls[f"folded and watched, {says}"] = FoldedClip(watched, max_norm).step
        around[f"folded and watched, {says}"] = listening
    interleave(
        {"watched": calls["folded and watched, no step clipped"]},
        YOUNG,
        before=given.put_back,
        around={"watched": listening},
    )
    t = interleave(
        calls, effort.of(200 if size == "1M" else 30), warm=3, before=given.put_back, around=around
    )

    row_of = partial(row, cadence=f"every step; {given.says}, gradients given")
    ratio_of = partial(row_of, unit="ratio")
    large = size in LARGE
    rows = []
    for says in bound:
        folded = t[f"folded, {says}"]
        name = f"{size}: folded clip + AdamW to"
        for other, goal in (("foreach", 0.5), ("fused", 1.35), ("for-loop", None)):
            rows.append(
                ratio_of(
                    f"{name} unclipped {other} AdamW, {says}",
                    ratio(folded, t[other]),
                    goal=goal if large else None,
                )
            )
        extra = beyond(t[f"folded and watched, {says}"], t["fused"], t["clip"])
        name = f"{size}: folded clip + monitor to clip_grad_norm_ alone, {says}"
        bar = 0.75 if large else 1.0
        rows.append(ratio_of(name, extra, goal=bar if says == "no step clipped" else None))
    for other in IMPLEMENTATIONS:
        name = f"{size}: folded clip + AdamW to clip_grad_norm_ + {other} AdamW"
        rows.append(ratio_of(name, ratio(t["folded, no step clipped"], t[f"clip + {other}"])))
    extra = beyond(t["clip, watched"], t["fused"], t["clip"])
    rows.append(
        ratio_of(f"{size}: a script's clip_grad_norm_, watched, to clip_grad_norm_ not watched", extra)
    )
    rows.append(row_of(f"{size}: clip_grad_norm_", typical(t["clip"]), unit="s"))
    rows.append(row_of(f"{size}: fused AdamW", typical(t["fused"]), unit="s"))
    return rows
