"""Fifty layers without a norm: a smooth activation learns faster than ReLU, if the weights are its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.init import critical_point, initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, by_seed, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, panels, spread
from studies.training import digit_batches, final, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, BATCH, LR, STEPS = 50, 64, 64, 3e-4, 150
WIDE, NETS, PAIRS, ALIKE = (
    600,
    4,
    32,
    0.6,
)  # for the angle: width, nets to average, pairs of inputs, their correlation
ACTIVATIONS = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}
SMOOTH = ("elu", "selu", "gelu", "silu", "mish")
NAMES = {"relu": "ReLU", "elu": "ELU", "selu": "SELU", "gelu": "GELU", "silu": "SiLU", "mish": "Mish"}


@lru_cache(2)
def angle_in_theory(activation: str) -> list[float]:
    """1 - correlation of two inputs by layer, in an infinitely wide net at its critical point without biases.

    Source: Poole et al. (2016), the map of the correlation, https://arxiv.org/abs/1606.05340
    """
    nodes = torch.linspace(-7, 7, 561, dtype=torch.float64)  # a fine grid: ReLU has a kink
    weights = torch.softmax(-nodes.square() / 2, 0)
    f, sigma_w = ACTIVATIONS[activation](), critical_point(activation).sigma_w
    q, c, found = sigma_w**2, ALIKE, []
    for _ in range(DEPTH):
        found.append(1 - c)
        first = f(math.sqrt(q) * nodes)
        second = f(math.sqrt(q) * (c * nodes[:, None] + math.sqrt(1 - c * c) * nodes))
        power = float(weights @ first.square())
        c = float(weights @ (first * (second @ weights))) / power
        q = sigma_w**2 * power
    return found


def measure(seed: int, smoke: bool, part: str, activation: str, weights: str) -> Run:
    """How far apart two inputs stay before training, or the loss of a watched training."""
    if part == "angle":
        return {"apart": angle(activation, 200 if smoke else WIDE, 2 if smoke else NETS)}
    data = digits()
    model = mlp(64, CLASSES, width=WIDTH, depth=DEPTH, activation=ACTIVATIONS[activation])
    if weights == "own":
        initialise(model, data.x[:BATCH], "critical")
    else:
        initialise(model, data.x[:BATCH], "he_normal", gain=math.sqrt(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with watched(model, optimizer, digit_batches(data, BATCH, 4 if smoke else STEPS, seed)) as run:
        return {"loss": final(losses(run))}


@torch.no_grad()
def angle(activation: str, width: int, nets: int) -> list[float]:
    """1 - correlation of the pre-activations of two inputs by layer, the geometric mean over some nets."""
    logs = torch.zeros(DEPTH)
    for _ in range(nets):
        model = mlp(width, CLASSES, width=width, depth=DEPTH, activation=ACTIVATIONS[activation])
        first = torch.randn(PAIRS, width)
        h = torch.cat([first, ALIKE * first + math.sqrt(1 - ALIKE**2) * torch.randn(PAIRS, width)])
        initialise(model, h, "critical")
        apart = []
        for layer in model[:-1]:
            h = layer(h)
            if isinstance(layer, nn.Linear):
                apart.append(1 - torch.cosine_similarity(h[:PAIRS], h[PAIRS:]).mean())
        logs += torch.stack(apart).log() / nets
    return [float(f"{v:.4g}") for v in logs.exp().tolist()]


def over_theory(activation: str) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: the distance after the last layer over the theory's."""
    return lambda runs: [
        run["apart"][-1] / angle_in_theory(activation)[-1]
        for run in pick(runs, part="angle", activation=activation)
    ]


def better(runs: Sequence[Run]) -> float:
    """How many smooth activations end below ReLU."""
    (relu,) = pick(runs, part="train", activation="relu")
    own = pick(runs, part="train", weights="own")
    return float(sum(run["loss"] < relu["loss"] for run in own if run["activation"] in SMOOTH))


def draw(runs: Sequence[Run]) -> Figure:
    """Distance of two inputs by layer; final loss by activation."""
    figure, axes = panels(
        "Fifty layers without a norm: ReLU makes all inputs alike, smooth ones learn", columns=2
    )
    xs = range(1, DEPTH + 1)
    for activation, colour, name in (("relu", ORANGE, "ReLU"), ("tanh", BLUE, "tanh")):
        rows = [run["apart"] for run in pick(runs, part="angle", activation=activation)]
        spread(axes[0], xs, rows, colour, name, "-")
        axes[0].plot(xs, angle_in_theory(activation), ":", color=GREY)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("layer, before training; dotted: theory")
    axes[0].set_ylabel("1 - correlation of two inputs")
    axes[0].legend(frameon=False)
    colours = (ORANGE, BLUE, GREEN, RED, PURPLE, GREY)
    for place, (activation, colour) in enumerate(zip(NAMES, colours, strict=True)):
        for weights, fill in (("own", colour), ("relu", "white")):
            found = [
                r["loss"]
                for r in runs
                if (r["part"], r["activation"], r["weights"]) == ("train", activation, weights)
            ]
            at = [place + 0.1 * (i - 1) for i in range(len(found))]
            axes[1].plot(at, found, "o", color=colour, markerfacecolor=fill, markersize=7)
    axes[1].axhline(math.log(CLASSES), color="black", linestyle=":", linewidth=1)
    axes[1].text(-0.4, math.log(CLASSES) + 0.04, "guessing", fontsize=9)
    axes[1].set_xticks(range(len(NAMES)), list(NAMES.values()))
    axes[1].set_ylim(0, 2.6)
    axes[1].set_xlabel("full: its own critical weights, open: ReLU's")
    axes[1].set_ylabel(f"training loss after {STEPS} steps, nats")
    return figure


ANGLE = [{"part": "angle", "activation": a, "weights": "own"} for a in ("relu", "tanh")]
OWN = [{"part": "train", "activation": a, "weights": "own"} for a in NAMES]
WRONG = {"part": "train", "activation": "silu", "weights": "relu"}
STUDY = Study(
    name="activations_without_norm",
    arms=[*ANGLE, *OWN, WRONG],
    seeds=(20, 21, 22),
    values=[
        Value("1 - correlation after 50 ReLU layers, over theory", "1", 1 / 1.6, 1.6, over_theory("relu")),
        Value("1 - correlation after 50 tanh layers, over theory", "1", 1 / 1.2, 1.2, over_theory("tanh")),
        Value("smooth activations of 5 that end below ReLU", "5", 4, 5, by_seed(better)),
        Value(
            "loss of SiLU with ReLU's weights",
            "fails: ln 10 = 2.303",
            0,
            2.0,
            each("loss", part="train", activation="silu", weights="relu"),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[*ANGLE, OWN[3], WRONG],
)
