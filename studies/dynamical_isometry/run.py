"""Orthogonal weights carry every direction through fifty layers; Gaussian ones of the same norm lose nearly all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.init import initialise, jacobian_singular_values
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, by_seed, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREY, ORANGE, panels, spread
from studies.training import digit_batches, final, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS, UNITS = 50, 128  # of the linear net
DEPTH, WIDTH, STEPS, BATCH = 100, 64, 150, 64  # of the training
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
KINDS = ("orthogonal", "gaussian")
LINEAR = {"orthogonal": {"scheme": "orthogonal", "gain": 1.0}, "gaussian": {"scheme": "lecun_normal"}}
CRITICAL = {"orthogonal": "orthogonal", "gaussian": "critical"}  # both at sigma_w = 1 for tanh
FORGOTTEN = math.sqrt((LAYERS + 1) ** (LAYERS + 1) / LAYERS**LAYERS) * 2 ** (LAYERS / 2)


def measure(seed: int, smoke: bool, part: str, init: str, lr: float) -> Run:
    """The singular values of a linear net, or the loss of a watched training."""
    return spectrum(init, smoke) if part == "spectrum" else training(seed, init, lr, 25 if smoke else STEPS)


def spectrum(init: str, smoke: bool) -> Run:
    units = 32 if smoke else UNITS
    x = torch.randn(1, units)
    model = nn.Sequential(*(nn.Linear(units, units, bias=False) for _ in range(LAYERS)))
    initialise(model, x, **LINEAR[init])
    (values,) = jacobian_singular_values(model, x).tolist()
    return {
        "condition": values[0] / values[-1],
        "to_median": values[0] / median(values),
        "values": [float(f"{v:.4g}") for v in values],
    }


def training(seed: int, init: str, lr: float, steps: int) -> Run:
    data = digits()
    model = mlp(64, CLASSES, width=WIDTH, depth=DEPTH, activation=nn.Tanh)
    initialise(model, data.x[:BATCH], CRITICAL[init])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with watched(model, optimizer, digit_batches(data, BATCH, steps, seed)) as run:
        loss = losses(run)
    return {"loss": final(loss), "curve": thinned(loss, 50)}


def best(runs: Sequence[Run], init: str) -> Run:
    """Of one seed's learning rates, the run that ends lowest."""
    return min(pick(runs, part="training", init=init), key=lambda run: run["loss"])


def best_loss(init: str) -> Callable[[Sequence[Run]], list[float]]:
    return by_seed(lambda runs: best(runs, init)["loss"])


def draw(runs: Sequence[Run]) -> Figure:
    """The spectra, and the best training of each."""
    figure, (left, right) = panels(
        "Orthogonal weights keep every direction through the depth, and so the net learns", columns=2
    )
    seeds = sorted({run["seed"] for run in runs})
    for init, colour in zip(KINDS, (BLUE, ORANGE), strict=True):
        name = init.capitalize()
        rows = [run["values"] for run in pick(runs, part="spectrum", init=init)]
        spread(left, range(1, len(rows[0]) + 1), rows, colour, name, "-")
        curves = [best(pick(runs, seed=s), init)["curve"] for s in seeds]
        xs = [i * STEPS / len(curves[0]) for i in range(len(curves[0]))]
        spread(right, xs, curves, colour, f"{name}, best of {len(RATES)} rates", "-")
    left.set_yscale("log")
    left.set_ylim(1e-14, 1e3)  # below it is rounding
    left.set_xlabel("direction, from the longest to the shortest")
    left.set_ylabel(f"stretched by {LAYERS} linear layers")
    left.legend(frameon=False, loc="lower left")
    right.axhline(math.log(CLASSES), color=GREY, linestyle=":", label="guessing")
    right.set_ylim(0, 3)
    right.set_xlabel("step")
    right.set_ylabel(f"training loss of {DEPTH} tanh layers, nats")
    right.legend(frameon=False, loc="lower left", fontsize=8)
    return figure


STUDY = Study(
    name="dynamical_isometry",
    arms=[
        *({"part": "spectrum", "init": init, "lr": 0.0} for init in KINDS),
        *({"part": "training", "init": init, "lr": lr} for init in KINDS for lr in RATES),
    ],
    values=[
        Value(
            "largest / smallest singular value, 50 linear layers, orthogonal",
            "1",
            1,
            1.001,
            each("condition", part="spectrum", init="orthogonal"),
        ),
        Value(
            "largest / median singular value, 50 linear layers, Gaussian",
            f"wide nets: {FORGOTTEN:.2g}",
            FORGOTTEN / 4,
            FORGOTTEN * 4,
            each("to_median", part="spectrum", init="gaussian"),
        ),
        Value(
            "final loss of 100 tanh layers, orthogonal, best rate",
            "trains: below half of ln 10 = 2.303",
            0,
            math.log(CLASSES) / 2,
            best_loss("orthogonal"),
        ),
        Value(
            "final loss of 100 tanh layers, Gaussian, best rate",
            "slower",
            math.log(CLASSES) / 2,
            math.inf,
            best_loss("gaussian"),
        ),
        Value(
            "final loss, Gaussian at lr 0.03, where the orthogonal net is at its best",
            "stalls: ln 10 = 2.303",
            1.9,
            math.inf,
            each("loss", part="training", init="gaussian", lr=3e-2),
        ),
        Value(
            "largest / smallest singular value, 50 linear layers, Gaussian",
            "fails",
            1,
            1.001,
            each("condition", part="spectrum", init="gaussian"),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[
        *({"part": "spectrum", "init": init, "lr": 0.0} for init in KINDS),
        *({"part": "training", "init": init, "lr": 3e-2} for init in KINDS),
    ],
)
