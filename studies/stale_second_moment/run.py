"""Where gradients grow at once, Adam's second moment lags: the RMS of g over its root rises, and the loss follows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from steadygrad.clip import clipped_updates
from steadygrad.init import initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, panels, spread
from studies.training import Batch, digit_batches, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, BATCH, LR = 6, 64, 512, 3e-3
SHIFT, AFTER, SHORT = 300, 40, 200  # step of the shift, steps behind it; the step of a run of seconds
FACTOR = 50.0  # of the gradient, from the shift on
WINDOW, DEVIATIONS = 100, 5.0  # a spike is so many standard deviations above the mean of so many steps
FOLLOWS = (1, 8)  # steps from the alarm to the spike, as the paper has it


class Shifted:
    """Cross-entropy whose gradient, and not whose value, is larger by a factor from one step on."""

    def __init__(self, step: int, factor: float) -> None:
        self.step, self.factor, self.seen = step, factor, 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        factor = self.factor if self.seen >= self.step else 1.0
        self.seen += 1
        return loss + (factor - 1) * (loss - loss.detach())


def noisy(feed: Iterator[Batch], seed: int) -> Iterator[Batch]:
    """Digits under fresh noise, so that the loss comes to rest well above 0."""
    generator = torch.Generator().manual_seed(seed)
    return ((x + torch.randn(x.shape, generator=generator), y) for x, y in feed)


def measure(seed: int, smoke: bool, beta2: float, factor: float, clipped: bool) -> Run:
    """The loss around the shift, the RMS as the trace has it, and the step of the first finding of rule O102."""
    data, shift = digits(), SHORT if smoke else SHIFT
    model = mlp(64, CLASSES, width=WIDTH, depth=DEPTH)
    initialise(model, data.x[:BATCH])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, beta2))
    feed = noisy(digit_batches(data, BATCH, shift + (10 if smoke else AFTER), seed), seed)
    around = clipped_updates if clipped else nullcontext
    with watched(model, optimizer, feed, loss_fn=Shifted(shift, factor), around=around, tier="deep") as run:
        loss = losses(run)
        rms = [max(row) for row in zip(*(run.series("adam_rms", p.name)[1] for p in run.params), strict=True)]
        alarms = [f.step for f in run.findings() if f.code == "O102" and f.step >= shift - WINDOW]
    spikes = [i for i in range(shift, len(loss)) if is_spike(loss, i, shift)]
    return {
        "alarm": float(alarms[0] - shift) if alarms else math.nan,
        "lead": float(spikes[0] - alarms[0]) if alarms and spikes else math.nan,
        "spikes": float(len(spikes)),
        "rms": float(rms[shift]),
        "loss": [float(f"{v:.4g}") for v in loss[shift - 20 :]],
        "rms_curve": [float(f"{v:.4g}") for v in rms[shift - 20 :]],
    }


def is_spike(loss: Sequence[float], step: int, shift: int) -> bool:
    """Far above the steps before; those behind the shift do not count as usual."""
    end = min(step, shift)
    usual = loss[end - WINDOW : end]
    return loss[step] > fmean(usual) + DEVIATIONS * stdev(usual)


def draw(runs: Sequence[Run]) -> Figure:
    """RMS and loss around the shift."""
    figure, (left, right) = panels(
        "First the RMS jumps, then the loss: a warning of a step or more", columns=2
    )
    for arm, colour, name in (
        (STALE, ORANGE, "beta2 0.999"),
        (QUICK, GREEN, "beta2 0.9"),
        (CLIPPED, BLUE, "beta2 0.999, updates clipped"),
    ):
        mine = pick(runs, **arm)
        xs = range(-20, len(mine[0]["loss"]) - 20)
        spread(left, xs, [run["rms_curve"] for run in mine], colour, name, "-")
        spread(right, xs, [run["loss"] for run in mine], colour, name, "-")
    for axis in (left, right):
        axis.axvline(0, color=GREY, linestyle=":", label=f"gradient x {FACTOR:g}")
        axis.set_xlim(-10, 25)
        axis.set_xlabel("steps since the gradient grew")
    left.set_yscale("log")
    left.set_ylabel("RMS of g / sqrt(v), largest of all weights")
    right.set_ylim(0, None)
    right.set_ylabel("training loss, nats")
    left.legend(frameon=False, fontsize=8)
    return figure


STALE = {"beta2": 0.999, "factor": FACTOR, "clipped": False}
QUICK = {"beta2": 0.9, "factor": FACTOR, "clipped": False}
CLIPPED = {"beta2": 0.999, "factor": FACTOR, "clipped": True}
CALM = {"beta2": 0.999, "factor": 1.0, "clipped": False}
STUDY = Study(
    name="stale_second_moment",
    arms=[STALE, QUICK, CLIPPED, CALM],
    values=[
        Value("steps from the shift to the alarm, beta2 0.999", "0", 0, 0, each("alarm", **STALE)),
        Value(
            "steps from the alarm to the first spike of the loss", "1 to 8", *FOLLOWS, each("lead", **STALE)
        ),
        Value("RMS at the shift", "above 2.3", 2.3, math.inf, each("rms", **STALE)),
        Value("spikes of the loss, beta2 0.9", "0", 0, 0, each("spikes", **QUICK)),
        Value("spikes of the loss, updates clipped (StableAdamW)", "0", 0, 0, each("spikes", **CLIPPED)),
        Value("spikes of the loss, beta2 0.999 and no shift", "0", 0, 0, each("spikes", **CALM)),
        Value("steps from alarm to spike without a shift", "fails", *FOLLOWS, each("lead", **CALM), 1, True),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[STALE],
)
