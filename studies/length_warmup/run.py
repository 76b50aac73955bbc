"""Short sequences first teach a recurrent net what long ones alone do not; easy digits first do not help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.clip import clip_by_global_norm_
from steadygrad.nn.models import mlp
from steadygrad.schedule import linear_pacing, sequence_length, truncate
from studies.claim import Run, Study, Value, each, pick, ratios
from studies.combinations.run import order
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, panels, spread
from studies.fits import shuffled
from studies.recurrent_clipping.run import CHANCE, SYMBOLS, UNITS
from studies.recurrent_clipping.run import first_symbols as symbols
from studies.training import Batch, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE, SHORTEST, STEPS, WARMUP, LR = 79, 8, 250, 150, 3e-3
LENGTH = NOISE + 1
TESTS, FAR = 8, 1000  # batches of the test, and their seeds


class Recall(nn.Module):
    """A tanh RNN with torch's weights that says at the end which symbol came first."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(SYMBOLS, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def lengths(kind: str) -> list[int]:
    """Of each step: full from the start, growing, or those of the growing ones in another order."""
    if kind == "full":
        return [LENGTH] * STEPS
    growing = [
        sequence_length(linear_pacing(step, WARMUP, start=0.0), SHORTEST, LENGTH) for step in range(STEPS)
    ]
    return growing if kind == "warmup" else shuffled(growing)


def measure(seed: int, smoke: bool, part: str, kind: str) -> Run:
    """A watched training by one order of its data, and the loss on full or new examples afterwards."""
    return by_length(seed, smoke, kind) if part == "length" else by_difficulty(seed, kind)


def by_length(seed: int, smoke: bool, kind: str) -> Run:
    model = Recall()
    steps = 20 if smoke else STEPS
    pairs = zip(symbols(NOISE, steps, seed), lengths(kind), strict=False)
    feed: Iterator[Batch] = ((truncate(x, length), y) for (x, y), length in pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with watched(model, optimizer, feed, clip=partial(clip_by_global_norm_, max_norm=1.0)) as run:
        curve = thinned(losses(run))
    with torch.no_grad():
        tests = [F.cross_entropy(model(x), y).item() for x, y in symbols(NOISE, TESTS, FAR + seed)]
    return {"test": sum(tests) / TESTS, "curve": curve}


def by_difficulty(seed: int, kind: str) -> Run:
    data = digits()
    model = mlp(64, CLASSES, width=64, depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    feed = ((data.x[i], data.y[i]) for i in order(kind == "easy_first", seed))
    with watched(model, optimizer, feed) as run:
        curve = thinned(losses(run))
    with torch.no_grad():
        test = F.cross_entropy(model(data.x_test), data.y_test).item()
    return {"test": test, "curve": curve}


def draw(runs: Sequence[Run]) -> Figure:
    """Training loss by the order of lengths; test loss by the order of difficulties."""
    figure, axes = panels(
        "Short sequences first: the net learns; easy digits first: nothing gained", columns=2
    )
    for kind, colour, name in (
        ("full", ORANGE, f"all of length {LENGTH}"),
        ("shuffled", GREY, "the same lengths, shuffled"),
        ("warmup", BLUE, "short ones first"),
    ):
        rows = [run["curve"] for run in pick(runs, part="length", kind=kind)]
        xs = [i * STEPS / len(rows[0]) for i in range(len(rows[0]))]
        spread(axes[0], xs, rows, colour, name, "-")
    axes[0].axhline(CHANCE, color="black", linestyle=":", linewidth=1)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("step; dotted: guessing")
    axes[0].set_ylabel("training loss, nats")
    axes[0].legend(frameon=False, loc="lower left")
    for place, (kind, colour) in enumerate((("random", ORANGE), ("easy_first", GREEN))):
        found = [run["test"] for run in pick(runs, part="difficulty", kind=kind)]
        axes[1].plot(
            [place + 0.1 * (i - 1) for i in range(len(found))], found, "o", color=colour, markersize=8
        )
    axes[1].set_xticks((0, 1), ("random order", "easy digits first"))
    axes[1].set_xlim(-0.6, 1.6)
    axes[1].set_ylim(0, 0.4)
    axes[1].set_xlabel("a dot is a seed")
    axes[1].set_ylabel("test loss after 150 steps, nats")
    return figure


WARM, FULL = {"part": "length", "kind": "warmup"}, {"part": "length", "kind": "full"}
RANDOM, EASY = {"part": "difficulty", "kind": "random"}, {"part": "difficulty", "kind": "easy_first"}
STUDY = Study(
    name="length_warmup",
    arms=[WARM, FULL, {"part": "length", "kind": "shuffled"}, RANDOM, EASY],
    seeds=(10, 11, 12),
    values=[
        Value(f"test loss at length {LENGTH}, short ones first", "0", 0, 0.1, each("test", **WARM)),
        Value(
            f"test loss at length {LENGTH}, all of it from the start",
            "guesses",
            0,
            0.1,
            each("test", **FULL),
            1,
            True,
        ),
        Value(
            "test loss of digits, easy first / random order",
            "better: below 1",
            0,
            1,
            ratios("test", EASY, RANDOM),
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[WARM, EASY],
)
