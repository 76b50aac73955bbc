"""A SELU net with LeCun's weights keeps mean 0 and variance 1 through a hundred layers; a ReLU net with them dies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.init import initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each
from studies.figure import BLUE, GREY, ORANGE, panels, spread
from studies.training import watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, EXAMPLES = 100, 512, 128
ACTIVATIONS = {"selu": nn.SELU, "relu": nn.ReLU}


def measure(seed: int, smoke: bool, activation: str) -> Run:
    """Second moments of the activations as the trace of one step has them, and the mean of the last."""
    depth, width = (30, 256) if smoke else (DEPTH, WIDTH)
    x, y = torch.randn(EXAMPLES, width), torch.randint(0, 10, (EXAMPLES,))
    model = mlp(width, 10, width=width, depth=depth, activation=ACTIVATIONS[activation])
    initialise(model, x, "lecun_normal")
    with torch.no_grad():
        mean = model[:-1](x).mean().item()
    with watched(
        model, torch.optim.SGD(model.parameters(), lr=0.0), [(x, y)], loss_fn=F.cross_entropy
    ) as run:
        rms = [float(run.series("act_rms", f"{2 * i + 1}")[1][0]) for i in range(depth)]
    return {"mean": mean, "moment": rms[-1] ** 2, "moments": [r * r for r in rms]}


def draw(runs: Sequence[Run]) -> Figure:
    """Second moment by layer."""
    figure, (axis,) = panels("SELU keeps its activations at size 1 through a hundred layers")
    for activation, colour, name in (
        ("selu", BLUE, "SELU"),
        ("relu", ORANGE, "ReLU, same weights (control)"),
    ):
        rows = [run["moments"] for run in runs if run["activation"] == activation]
        spread(axis, range(1, len(rows[0]) + 1), rows, colour, name, "-")
    axis.axhline(1, color=GREY, linestyle=":", label="fixed point: 1")
    axis.set_yscale("log")
    axis.set_xlabel("layer")
    axis.set_ylabel("second moment of the activations")
    axis.legend(frameon=False)
    return figure


STUDY = Study(
    name="selu_fixed_point",
    arms=[{"activation": "selu"}, {"activation": "relu"}],
    values=[
        Value("mean of the activations of layer 100, SELU", "0", -0.1, 0.1, each("mean", activation="selu")),
        Value(
            "their second moment, SELU", "1; domain 0.8 to 1.5", 0.8, 1.5, each("moment", activation="selu")
        ),
        Value("the same with ReLU", "fails", 0.8, 1.5, each("moment", activation="relu"), 1, True),
    ],
    measure=measure,
    draw=draw,
)
