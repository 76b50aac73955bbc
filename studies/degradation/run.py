"""A deeper plain net is worse on its own training data, a deeper residual net is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.nn import Residual
from studies.claim import Run, Study, Value, ratios
from studies.common import CLASSES, digits
from studies.figure import BLUE, ORANGE, panels, spread
from studies.training import digit_batches, final, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, BATCH, LR, STEPS = 64, 64, 0.05, 200


def layer(last: bool) -> list[nn.Module]:
    parts: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)]
    return parts if last else [*parts, nn.ReLU()]


def blocks(kind: str, depth: int) -> list[nn.Module]:
    """Two layers a block. ``naive`` adds a branch of one layer that ends with its ReLU."""
    if kind == "naive":
        return [Residual(nn.Sequential(*layer(last=False)), placement=None) for _ in range(depth)]
    made: list[nn.Module] = []
    for _ in range(depth // 2):
        branch = nn.Sequential(*layer(last=False), *layer(last=True))
        made += [branch if kind == "plain" else Residual(branch, placement=None), nn.ReLU()]
    return made


def net(kind: str, depth: int) -> nn.Sequential:
    """Stem, blocks, head."""
    stem = [nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*stem, *blocks(kind, depth), nn.Linear(WIDTH, CLASSES))


def measure(seed: int, smoke: bool, kind: str, depth: int) -> Run:
    """The loss of a watched training."""
    data = digits()
    model = net(kind, depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    feed = digit_batches(data, BATCH, 40 if smoke else STEPS, seed)
    with watched(model, optimizer, feed) as run:
        loss = losses(run)
    return {"loss": final(loss), "curve": thinned(loss)}


def draw(runs: Sequence[Run]) -> Figure:
    """Training loss, plain beside residual."""
    figure, axes = panels("Forty layers: worse than ten without skips, nearly as good with them", columns=2)
    for axis, kind, name in zip(axes, ("plain", "residual"), ("plain", "residual"), strict=True):
        for depth, colour in ((10, BLUE), (40, ORANGE)):
            rows = [run["curve"] for run in runs if (run["kind"], run["depth"]) == (kind, depth)]
            xs = [i * STEPS / len(rows[0]) for i in range(len(rows[0]))]
            spread(axis, xs, rows, colour, f"{depth} layers", "-")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0, 2.6)
    axes[0].set_ylabel("training loss, nats")
    axes[0].legend(frameon=False)
    return figure


PLAIN, DEEP = {"kind": "plain", "depth": 10}, {"kind": "plain", "depth": 40}
RESIDUAL, NAIVE = {"kind": "residual", "depth": 40}, {"kind": "naive", "depth": 40}
STUDY = Study(
    name="degradation",
    arms=[PLAIN, DEEP, {"kind": "residual", "depth": 10}, RESIDUAL, NAIVE],
    values=[
        Value(
            "loss, plain 40 layers / plain 10", "worse: above 3", 3, float("inf"), ratios("loss", DEEP, PLAIN)
        ),
        Value(
            "loss, residual 40 layers / plain 40", "better: below 0.5", 0, 0.5, ratios("loss", RESIDUAL, DEEP)
        ),
        Value(
            "the same where each branch ends with a ReLU",
            "fails",
            0,
            0.5,
            ratios("loss", NAIVE, DEEP),
            2,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[PLAIN, DEEP, RESIDUAL],
)
