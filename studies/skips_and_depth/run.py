"""Residual, highway and dense connections carry the gradient through sixty layers; a plain net loses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.init import audit
from steadygrad.nn.models import dense_mlp, highway_mlp, mlp, residual_mlp
from studies.claim import Run, Study, Value, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, panels, spread
from studies.training import digit_batches, final, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, BATCH, LR, STEPS = 64, 64, 1e-3, 100
DEPTHS = (10, 30, 60)
DEEPEST = DEPTHS[-1]
KINDS: dict[str, Callable[[int], nn.Module]] = {  # depth counts layers; torch's own weights
    "plain": lambda depth: mlp(64, CLASSES, width=WIDTH, depth=depth),
    "residual": lambda depth: residual_mlp(64, CLASSES, width=WIDTH, depth=depth // 2, placement=None),
    "highway": lambda depth: highway_mlp(64, CLASSES, width=WIDTH, depth=depth, gate_bias=-3.0),
    "dense": lambda depth: dense_mlp(64, CLASSES, growth=8, depth=depth),
    "open": lambda depth: highway_mlp(64, CLASSES, width=WIDTH, depth=depth, gate_bias=4.0),
}
SKIPS = ("residual", "highway", "dense")


def measure(seed: int, smoke: bool, kind: str, depth: int) -> Run:
    """The gradient of the first layer over the last before training, and the loss of a watched training."""
    data = digits()
    model = KINDS[kind](depth)
    growth = audit(model, data.x[:BATCH]).gradient_growth
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with watched(model, optimizer, digit_batches(data, BATCH, 10 if smoke else STEPS, seed)) as run:
        loss = losses(run)
    return {"loss": final(loss), "gradient": growth}


def a_layer(runs: Sequence[Run]) -> list[float]:
    """Factor of the plain net's gradient in a layer, seed by seed."""
    return [run["gradient"] ** (1 / DEEPEST) for run in pick(runs, kind="plain", depth=DEEPEST)]


def draw(runs: Sequence[Run]) -> Figure:
    """Gradient and loss by depth."""
    figure, axes = panels("Sixty layers: every skip carries the gradient, and the net learns", columns=2)
    kinds = {
        "plain": (ORANGE, "plain"),
        "open": (GREY, "highway, gates open (control)"),
        "residual": (BLUE, "residual"),
        "highway": (GREEN, "highway"),
        "dense": (PURPLE, "dense"),
    }
    for kind, (colour, name) in kinds.items():
        depths = sorted({run["depth"] for run in pick(runs, kind=kind)})
        seeds = sorted({run["seed"] for run in runs})
        for axis, number in zip(axes, ("gradient", "loss"), strict=True):
            rows = [[run[number] for run in pick(runs, kind=kind, seed=s)] for s in seeds]
            spread(axis, depths, rows, colour, name)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("gradient at the start, first layer over last")
    axes[1].axhline(math.log(CLASSES), color="black", linestyle=":", linewidth=1)
    axes[1].text(DEPTHS[0], math.log(CLASSES) + 0.05, "guessing", fontsize=9)
    axes[1].set_ylim(0, 2.7)
    axes[1].set_ylabel(f"training loss after {STEPS} steps, nats")
    axes[0].legend(frameon=False, loc="lower left")
    for axis in axes:
        axis.set_xticks(DEPTHS)
        axis.set_xlabel("layers")
    return figure


STUDY = Study(
    name="skips_and_depth",
    arms=[
        *({"kind": kind, "depth": depth} for kind in ("plain", *SKIPS) for depth in DEPTHS),
        {"kind": "open", "depth": DEEPEST},
    ],
    seeds=(10, 11, 12),
    values=[
        Value("factor of the gradient a layer, plain", "1/sqrt(6) = 0.408", 0.388, 0.428, a_layer),
        *(
            Value(
                f"gradient of the first of 60 layers over the last, {kind}",
                "kept",
                1e-2,
                1e2,
                each("gradient", kind=kind, depth=DEEPEST),
            )
            for kind in SKIPS
        ),
        Value(
            "loss, plain, 60 layers",
            "guesses: ln 10 = 2.303",
            2.2,
            2.4,
            each("loss", kind="plain", depth=DEEPEST),
        ),
        *(
            Value(f"loss, {kind}, 60 layers", "learns", 0, 1.0, each("loss", kind=kind, depth=DEEPEST))
            for kind in SKIPS
        ),
        Value(
            "loss, highway with open gates",
            "fails",
            0,
            1.0,
            each("loss", kind="open", depth=DEEPEST),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"kind": kind, "depth": DEPTHS[1]} for kind in ("plain", *SKIPS)],
)
