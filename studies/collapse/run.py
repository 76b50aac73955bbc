"""Five ways to train without labels collapse when one thing is left out; it is told early, and putting it back heals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

import steadygrad as sg
from studies.claim import Run, Study, Value, each, pick
from studies.collapse.nets import Trainee, linear_probe, views
from studies.common import digits
from studies.figure import BLUE, GREEN, ORANGE, panels
from studies.training import thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("simclr", "vicreg", "barlow", "simsiam", "byol")
WRONG = {
    "simclr": "temperature 100",
    "vicreg": "no variance term",
    "barlow": "nothing off the diagonal",
    "simsiam": "no stop-gradient",
    "byol": "no predictor",
}
KINDS = {"sound": BLUE, "wrong": ORANGE, "remedied": GREEN}
STEPS, BATCH, LR = 400, 128, 3e-3
EARLY = 0.2  # of the run
CODES = ("E101", "E102")


def measure(seed: int, smoke: bool, method: str, kind: str) -> Run:
    """A watched pre-training; ``remedied``: begun wrong, and set right at the step at which a rule has spoken."""
    data, steps = digits(), 110 if smoke else STEPS
    trainee = Trainee(method, sound=kind == "sound")
    untrained = linear_probe(trainee.encoder, data)
    optimizer = torch.optim.AdamW(
        [*trainee.student.parameters(), *trainee.predictor.parameters()], lr=LR, weight_decay=1e-4
    )
    found = math.nan
    with TemporaryDirectory() as folder:
        with sg.watch(trainee, optimizer, runs=folder, guard="off") as watcher:
            for step, (a, b) in enumerate(islice(views(data, BATCH, seed), steps)):
                optimizer.zero_grad()
                trainee(a, b).backward()
                optimizer.step()
                trainee.teacher.update()
                if math.isnan(found) and any(f.code in CODES for f in watcher.findings):
                    found = step
                    trainee.sound = trainee.sound or kind == "remedied"
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
