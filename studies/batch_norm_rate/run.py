"""Batch normalisation allows a learning rate 5 to 30 times as large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREY, ORANGE, panels, spread
from studies.training import accuracy, digit_batches, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, BATCH, STEPS = 6, 100, 60, 300
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LEARNED = {"none": 0.4, "batch": 0.9, "frozen": 0.9}  # training accuracy at which a rate counts as usable
NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm1d,
    "frozen": lambda width: nn.BatchNorm1d(width).eval(),  # divides by 1, whatever comes
}


def measure(seed: int, smoke: bool, norm: str, lr: float) -> Run:
    """Accuracy after a watched training at one learning rate."""
    data = digits()
    model = mlp(64, CLASSES, width=WIDTH, depth=DEPTH, norm=NORMS[norm])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    feed = digit_batches(data, BATCH, 60 if smoke else STEPS, seed)
    with watched(model, optimizer, feed) as run:
        finite = bool(math.isfinite(run.scalar("loss")[1][-1]))
    return {"accuracy": accuracy(model, data.x, data.y) if finite else 0.0}


def largest(runs: Sequence[Run], norm: str) -> float:
    """The largest rate that all seeds learn with; nan if there is none."""
    usable = [
        lr
        for lr in RATES
        if (mine := pick(runs, norm=norm, lr=lr)) and all(r["accuracy"] > LEARNED[norm] for r in mine)
    ]
    return max(usable, default=math.nan)


def ratio(runs: Sequence[Run], norm: str) -> list[float]:
    """The largest rate with a norm over the largest without; a net that no rate trains has gained nothing."""
    gained = largest(runs, norm) / largest(runs, "none")
    return [0.0 if math.isnan(largest(runs, norm)) else gained]


def draw(runs: Sequence[Run]) -> Figure:
    """Accuracy by learning rate."""
    figure, (axis,) = panels("With batch normalisation the net trains at rates ten times as large")
    for norm, colour, label in (
        ("none", ORANGE, "no normalisation"),
        ("batch", BLUE, "batch normalisation"),
        ("frozen", GREY, "its statistics frozen (control)"),
    ):
        seeds = sorted({run["seed"] for run in runs})
        rows = [[run["accuracy"] for run in pick(runs, norm=norm, seed=s)] for s in seeds]
        spread(axis, RATES, rows, colour, label)
    axis.set_xscale("log")
    axis.set_xticks(RATES, [f"{lr:g}" for lr in RATES])
    axis.minorticks_off()
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("learning rate of SGD")
    axis.set_ylabel("training accuracy after 300 steps")
    axis.legend(frameon=False)
    return figure


def value(name: str, expected: str, norm: str, control: bool = False) -> Value:
    return Value(name, expected, 5, 30, partial(ratio, norm=norm), control=control)


STUDY = Study(
    name="batch_norm_rate",
    arms=[{"norm": norm, "lr": lr} for norm in NORMS for lr in RATES],
    values=[
        value("largest rate with batch norm / without", "5 to 30", "batch"),
        value("the same with its statistics frozen", "fails", "frozen", control=True),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"norm": norm, "lr": 1.0} for norm in NORMS],
)
