"""With 30 ReLU layers a net with He's weights trains, and with Xavier's it stalls; with 10 layers both train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from steadygrad.init import audit, initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREY, ORANGE, panels, spread
from studies.fits import shuffled, slope
from studies.training import accuracy, digit_batches, final, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, WIDE, BATCH, LR, STEPS = 128, 1000, 64, 0.01, 400
SCHEMES = {
    "xavier": {"scheme": "xavier_normal", "gain": 1.0},
    "he": {"scheme": "he_normal"},
    "auto": {"scheme": "auto"},
}


def net(init: str, depth: int, x: Tensor, width: int = WIDTH) -> nn.Sequential:
    """A plain ReLU net; ``auto`` is what the package recommends."""
    model = mlp(64, CLASSES, width=width, depth=depth)
    initialise(model, x, **SCHEMES[init])
    return model


def measure(seed: int, smoke: bool, init: str, depth: int) -> Run:
    """The signal before training by the audit, and the loss of a watched training."""
    data, steps = digits(), 40 if smoke else STEPS
    model = net(init, depth, data.x[:BATCH])
    examples = data.x[:BATCH]
    wide = net(init, depth, examples, WIDTH if smoke else WIDE)  # the theory's width is infinite
    rms = [row.output_rms for row in audit(wide, examples).rows[:depth]]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    with watched(model, optimizer, digit_batches(data, BATCH, steps, seed)) as run:
        loss = losses(run)
    return {
        "loss": final(loss),
        "accuracy": accuracy(model, data.x, data.y),
        "signal": per_layer(rms),
        "shuffled": per_layer(shuffled(rms)),
        "curve": thinned(loss),
    }


def per_layer(rms: Sequence[float]) -> float:
    """Factor of the pre-activations' size from layer to layer."""
    return math.exp(slope(range(len(rms)), [math.log(x) for x in rms]))


def draw(runs: Sequence[Run]) -> Figure:
    """Loss of the training, shallow and deep."""
    figure, axes = panels("Thirty ReLU layers train with He's weights, and stall with Xavier's", columns=2)
    for axis, depth in zip(axes, (10, 30), strict=True):
        for init, colour in (("xavier", ORANGE), ("he", BLUE)):
            rows = [run["curve"] for run in runs if (run["init"], run["depth"]) == (init, depth)]
            xs = [i * STEPS / len(rows[0]) for i in range(len(rows[0]))]
            spread(axis, xs, rows, colour, init.capitalize(), "-")
        axis.axhline(math.log(CLASSES), color=GREY, linestyle=":", label="guessing")
        axis.set_title(f"{depth} layers", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0, 3)
    axes[0].set_ylabel("training loss, nats")
    axes[0].legend(frameon=False)
    return figure


STUDY = Study(
    name="he_depth",
    arms=[{"init": init, "depth": depth} for depth in (10, 30) for init in ("xavier", "he", "auto")],
    values=[
        Value(
            "factor of the signal a layer, Xavier, 30 layers",
            "1/sqrt(2) = 0.707",
            0.687,
            0.727,
            each("signal", init="xavier", depth=30),
        ),
        Value(
            "factor of the signal a layer, He, 30 layers",
            "1",
            0.98,
            1.02,
            each("signal", init="he", depth=30),
        ),
        Value(
            "final loss, Xavier, 30 layers",
            "stalls: ln 10 = 2.303",
            2.2,
            2.4,
            each("loss", init="xavier", depth=30),
            needed=2,
        ),
        Value("final loss, He, 30 layers", "converges", 0, 1.4, each("loss", init="he", depth=30)),
        Value(
            "final loss, the package's choice, 30 layers",
            "converges",
            0,
            1.4,
            each("loss", init="auto", depth=30),
        ),
        Value("accuracy, Xavier, 10 layers", "converges", 0.98, 1, each("accuracy", init="xavier", depth=10)),
        Value("accuracy, He, 10 layers", "converges", 0.98, 1, each("accuracy", init="he", depth=10)),
        Value(
            "factor of the signal with the layers shuffled, Xavier",
            "fails",
            0.687,
            0.727,
            each("shuffled", init="xavier", depth=30),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"init": init, "depth": depth} for depth in (10, 30) for init in ("xavier", "he")],
)
