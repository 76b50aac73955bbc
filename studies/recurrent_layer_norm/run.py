"""Twelve LSTM layers train with residual connections and not without; LayerNorm forgives inputs that are not scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.nn.models import residual_lstm, stacked_recurrent
from studies.claim import Run, Study, Value, each, pick, ratios
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, ORANGE, PURPLE, panels, spread
from studies.training import digit_batches, final, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DEEP, SHALLOW, BATCH, LR, STEPS = 32, 12, 2, 64, 3e-3, 100
RAW = 255.0  # pixels as they come
KINDS: dict[str, Callable[..., nn.Module]] = {
    "plain": stacked_recurrent,
    "norm": partial(residual_lstm, skip_scale=0.0),  # LayerNorm before each layer, nothing around it
    "residual": partial(residual_lstm, placement=None),
    "both": residual_lstm,
}


def measure(seed: int, smoke: bool, kind: str, depth: int, scale: float) -> Run:
    """The loss of a watched training on the digits, row by row."""
    data = digits()
    model = KINDS[kind](8, CLASSES, hidden_size=WIDTH, depth=depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    batches = digit_batches(data, BATCH, 30 if smoke else STEPS, seed)
    feed = ((scale * x.unflatten(1, (8, 8)), y) for x, y in batches)
    with watched(model, optimizer, feed) as run:
        loss = losses(run)
    return {"loss": final(loss), "curve": thinned(loss)}


def arm(kind: str, depth: int = DEEP, scale: float = 1.0) -> Run:
    return {"kind": kind, "depth": depth, "scale": scale}


def draw(runs: Sequence[Run]) -> Figure:
    """Training loss: scaled inputs, raw inputs."""
    figure, axes = panels(
        "Twelve LSTM layers: skips make them train, LayerNorm makes them forgiving", columns=2
    )
    kinds = {
        "plain": (ORANGE, "plain"),
        "norm": (PURPLE, "LayerNorm"),
        "residual": (BLUE, "residual"),
        "both": (GREEN, "residual and LayerNorm"),
    }
    for axis, scale, title in zip(
        axes, (1.0, RAW), ("inputs of variance 1", "inputs 255 times as large"), strict=True
    ):
        for kind, (colour, name) in kinds.items():
            rows = [run["curve"] for run in pick(runs, **arm(kind, DEEP, scale))]
            if rows:
                xs = [i * STEPS / len(rows[0]) for i in range(len(rows[0]))]
                spread(axis, xs, rows, colour, name, "-")
        axis.axhline(math.log(CLASSES), color="black", linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 4)
        axis.set_xlabel("step; dotted: guessing")
    axes[0].set_ylabel("training loss, nats")
    axes[0].legend(frameon=False, loc="upper left", ncols=2, fontsize=9)
    return figure


STUDY = Study(
    name="recurrent_layer_norm",
    arms=[
        arm("plain", SHALLOW),
        *(arm(kind) for kind in KINDS),
        *(arm(kind, DEEP, RAW) for kind in ("residual", "both")),
    ],
    seeds=(10, 11, 12),
    values=[
        Value("loss, plain, 2 layers", "works well", 0, 1.0, each("loss", **arm("plain", SHALLOW))),
        Value("loss, plain, 12 layers", "very poorly: ln 10 = 2.303", 2.2, 2.4, each("loss", **arm("plain"))),
        Value("loss, residual, 12 layers", "learns", 0, 0.3, each("loss", **arm("residual"))),
        Value("loss, residual and LayerNorm, 12 layers", "learns", 0, 0.3, each("loss", **arm("both"))),
        Value(
            "loss, LayerNorm alone / residual",
            "no substitute: above 3",
            3,
            math.inf,
            ratios("loss", arm("norm"), arm("residual")),
        ),
        Value(
            "inputs 255 times as large: loss with LayerNorm / without",
            "forgives: below 0.8",
            0,
            0.8,
            ratios("loss", arm("both", DEEP, RAW), arm("residual", DEEP, RAW)),
        ),
        Value(
            "loss, plain, 12 layers, as the residual ones",
            "fails",
            0,
            0.3,
            each("loss", **arm("plain")),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[arm("plain"), arm("both")],
)
