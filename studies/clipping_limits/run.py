"""Clipping holds a gradient that explodes; one that vanishes it leaves as it is, and orthogonal weights keep it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.clip import clip_by_global_norm_
from steadygrad.init import audit, orthogonal_recurrent_
from studies.claim import Run, Study, Value, each, pick, ratios
from studies.figure import BLUE, GREEN, GREY, ORANGE, panels
from studies.recurrent_clipping.run import CHANCE, NORM, FirstSymbol, first_symbols
from studies.training import final, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH, LR, STEPS = 50, 0.3, 200
RADII = {"vanishing": 0.8, "exploding": 1.5}


def net(weights: str) -> nn.Module:
    """Gaussian recurrent weights of some spectral radius, or orthogonal ones."""
    if weights in RADII:
        return FirstSymbol(RADII[weights])
    model = FirstSymbol(1.0)
    orthogonal_recurrent_(model.rnn)
    return model


def measure(seed: int, smoke: bool, weights: str, clip: bool) -> Run:
    """The gradient through time before training, and the loss of a watched training."""
    model = net(weights)
    ((x, _),) = first_symbols(LENGTH, 1, seed)
    (row,) = audit(model, x).through_time
    rule = partial(clip_by_global_norm_, max_norm=NORM) if clip else None
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with watched(model, optimizer, first_symbols(LENGTH, 60 if smoke else STEPS, seed), clip=rule) as run:
        loss = losses(run)
    return {"loss": final(loss), "gradient": row.alone}


def gained(runs: Sequence[Run]) -> list[float]:
    """The final loss without clipping less that with it, where the gradient vanishes, seed by seed."""
    without, clipped = (each("loss", weights="vanishing", clip=clip)(runs) for clip in (False, True))
    return [a - b for a, b in zip(without, clipped, strict=True)]


def draw(runs: Sequence[Run]) -> Figure:
    """Final loss of each seed: what vanishes, what explodes, what is kept."""
    figure, (axis,) = panels("Clipping saves what explodes, not what vanishes")
    columns = (
        ("exploding", False, ORANGE, "exploding"),
        ("exploding", True, ORANGE, "exploding,\nclipped"),
        ("vanishing", False, BLUE, "vanishing"),
        ("vanishing", True, BLUE, "vanishing,\nclipped"),
        ("orthogonal", True, GREEN, "orthogonal,\nclipped"),
    )
    for place, (weights, clip, colour, _) in enumerate(columns):
        found = [run["loss"] for run in pick(runs, weights=weights, clip=clip)]
        xs = [place + 0.1 * (i - 1) for i in range(len(found))]
        axis.plot(xs, found, "o", color=colour, markersize=8, markerfacecolor=colour if clip else "white")
    axis.axhline(CHANCE, color=GREY, linestyle=":", linewidth=1)
    axis.text(0.5, CHANCE * 1.15, "guessing", ha="center", fontsize=9)
    axis.set_yscale("log")
    axis.set_xticks(range(len(columns)), [name for *_, name in columns])
    axis.set_xlabel("recurrent weights; a dot is a seed")
    axis.set_ylabel(f"training loss after {STEPS} steps, nats")
    return figure


STUDY = Study(
    name="clipping_limits",
    arms=[
        *({"weights": w, "clip": clip} for w in RADII for clip in (False, True)),
        {"weights": "orthogonal", "clip": True},
    ],
    seeds=(20, 21, 22),
    values=[
        Value(
            "gradient through 50 steps, spectral radius 0.8",
            "0.8^50 = 1.4e-5 and less",
            0,
            1e-3,
            each("gradient", weights="vanishing", clip=True),
        ),
        Value(
            "... orthogonal / spectral radius 0.8",
            "kept, but for tanh",
            100,
            float("inf"),
            ratios(
                "gradient",
                {"weights": "orthogonal", "clip": True},
                {"weights": "vanishing", "clip": True},
            ),
        ),
        Value(
            "final loss, vanishing, clipped",
            "guesses: ln 2 = 0.693",
            0.65,
            0.75,
            each("loss", weights="vanishing", clip=True),
        ),
        Value("what clipping gains where the gradient vanishes, nats", "0", -0.01, 0.01, gained),
        Value(
            "final loss, orthogonal, clipped",
            "0",
            0,
            0.1,
            each("loss", weights="orthogonal", clip=True),
            needed=2,
        ),
        Value(
            "final loss, exploding, clipped",
            "0",
            0,
            0.1,
            each("loss", weights="exploding", clip=True),
            needed=2,
        ),
        Value(
            "final loss, vanishing, clipped, as the orthogonal ones",
            "fails",
            0,
            0.1,
            each("loss", weights="vanishing", clip=True),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"weights": "vanishing", "clip": True}, {"weights": "orthogonal", "clip": True}],
)
