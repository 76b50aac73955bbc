"""Five ways to train without labels collapse when one thing is left out; that is told early, and can be mended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import islice
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

import steadygrad as sg
from steadygrad.rules.dimensional_collapse import LEFT
from studies.claim import Run, Study, Value, each, pick
from studies.collapse.nets import Trainee, linear_probe, views
from studies.common import digits
from studies.figure import BLUE, GREEN, ORANGE, panels
from studies.training import thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("simclr", "vicreg", "barlow", "simsiam", "byol")
WRONG = {
    "simclr": "no negatives",
    "vicreg": "no variance",
    "barlow": "off-diagonal 0",
    "simsiam": "no stop-gradient",
    "byol": "no predictor",
}
KINDS = {"sound": BLUE, "wrong": ORANGE, "taken back": GREEN}
STEPS, BATCH, LR = 440, 128, 3e-3
CODES = ("E101", "E102")


def measure(seed: int, smoke: bool, method: str, kind: str) -> Run:
    """A watched pre-training of an encoder, and what a linear probe makes of it.

    ``taken back`` begins wrong; when a rule has spoken it goes on from the weights that it began with, set right. Every
    run has the same number of steps in all.
    """
    data, steps = digits(), 110 if smoke else STEPS
    trainee = Trainee(method, sound=kind == "sound")
    untrained = linear_probe(trainee.encoder, data)
    optimizer = torch.optim.AdamW(
        [*trainee.student.parameters(), *trainee.predictor.parameters()], lr=LR, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    at_first = deepcopy(trainee.state_dict())
    found = math.nan
    with TemporaryDirectory() as folder:
        with sg.watch(trainee, optimizer, runs=folder, guard="off") as watcher:
            for step, (a, b) in enumerate(islice(views(data, BATCH, seed), steps)):
                optimizer.zero_grad()
                trainee(a, b).backward()
                optimizer.step()
                schedule.step()
                trainee.teacher.update()
                if step % 10 == 0 and math.isnan(found) and any(f.code in CODES for f in watcher.findings):
                    found = step
                    if kind == "taken back":
                        trainee.sound = True
                        trainee.load_state_dict(at_first)
                        optimizer.state.clear()
            told = sorted({f.code for f in watcher.findings if f.code in CODES})
        run = sg.Run(watcher.run_dir)
        spread, rank = (run.scalar(f"embedding/{name}")[1].tolist() for name in ("spread", "effective_rank"))
    return {
        "found_after": found / steps,
        "told": told,
        "alarms": len(told),
        "accuracy": linear_probe(trainee.encoder, data),
        "untrained": untrained,
        "spread": thinned(spread),
        "rank": thinned(rank),
    }


def gaps(runs: Sequence[Run], kind: str) -> list[float]:
    """Accuracy of a kind less that of the sound runs, mean over seeds; one number a method."""
    return [
        mean(each("accuracy", method=m, kind=kind)(runs))
        - mean(each("accuracy", method=m, kind="sound")(runs))
        for m in METHODS
    ]


def draw(runs: Sequence[Run]) -> Figure:
    """Spread against effective rank over the run; accuracy of each kind."""
    figure, axes = panels(
        "Five collapses: none is taken for sound, and going back mends them", columns=2, height=4
    )
    for kind in ("sound", "wrong"):
        for i, run in enumerate(pick(runs, kind=kind)):
            rank = [value / run["rank"][0] for value in run["rank"]]
            axes[0].plot(run["spread"], rank, color=KINDS[kind], alpha=0.5, label=None if i else kind)
            axes[0].plot(run["spread"][-1], rank[-1], "o", color=KINDS[kind], markersize=4)
    axes[0].axhline(LEFT, color="black", linestyle=":", linewidth=1)
    axes[0].set_xlim(0, 1.05)
    axes[0].set_xlabel("spread of the embeddings; a dot: the end; dotted: E102 speaks")
    axes[0].set_ylabel("effective rank / that at first")
    axes[0].legend(frameon=False, loc="upper left")
    for place, method in enumerate(METHODS):
        for shift, (kind, colour) in enumerate(KINDS.items()):
            found = [run["accuracy"] for run in pick(runs, method=method, kind=kind)]
            at = [place + 0.22 * (shift - 1)] * len(found)
            axes[1].plot(
                at, found, "o", color=colour, markersize=5, label=kind if method == "vicreg" else None
            )
    axes[1].set_xticks(range(len(METHODS)), [f"{m}\n{WRONG[m]}" for m in METHODS], fontsize=6)
    axes[1].set_xlabel("a dot is a seed")
    axes[1].set_ylabel("accuracy of a linear probe")
    axes[1].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


STUDY = Study(
    name="collapse",
    arms=[{"method": method, "kind": kind} for kind in KINDS for method in METHODS],
    seeds=(30, 31, 32),
    values=[
        Value(
            "collapse found after, share of the run",
            "before 0.2",
            0,
            0.199,
            each("found_after", kind="wrong"),
        ),
        Value("findings of collapse in sound runs", "0", 0, 0, each("alarms", kind="sound")),
        Value(
            "accuracy of the linear probe, taken back and set right, less sound; by method",
            "within 0.02",
            -0.02,
            1,
            lambda runs: gaps(runs, "taken back"),
        ),
        Value(
            "the same, left wrong",
            "lower",
            -0.02,
            1,
            lambda runs: gaps(runs, "wrong"),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"method": "simclr", "kind": kind} for kind in ("sound", "wrong")],
)
