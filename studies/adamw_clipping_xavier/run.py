"""Through one bad batch a deep net needs clipping and Xavier's weights; AdamW replaces neither."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from steadygrad.clip import clip_by_global_norm_
from steadygrad.init import initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, ORANGE, RED, panels, spread
from studies.training import digit_batches, final, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DEPTH, BATCH, STEPS = 64, 20, 64, 220
BAD, WEIGHT = 100, 1e4  # steps before the bad batch, and what its loss is multiplied by
RATES = {"adamw": 1e-3, "sgd": 0.02}
BETA1, BETA2 = 0.9, 0.999


class OneBadBatch:
    """Cross-entropy; of one batch a broken weight makes ten thousand times that."""

    def __init__(self, bad: bool, place: int) -> None:
        self.left = place if bad else -1

    def __call__(self, out: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        return F.cross_entropy(out, target) * (WEIGHT if self.left == -1 else 1.0)


class Largest:
    """The largest change of a single weight in each step of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.steps: list[float] = []
        self.before: list[Tensor] = []
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(self.keep)
        optimizer.register_step_post_hook(self.compare)

    def keep(self, *_: Any) -> None:
        self.before = [p.detach().clone() for p in self.params]

    def compare(self, *_: Any) -> None:
        pairs = zip(self.params, self.before, strict=True)
        self.steps.append(max((p.detach() - old).abs().max().item() for p, old in pairs))


def measure(seed: int, smoke: bool, optimizer: str, clip: bool, init: str, bad: bool) -> Run:
    """The loss of a watched training, and the largest change of a weight in the bad step, over the learning rate."""
    data, steps, place = digits(), 60 if smoke else STEPS, 40 if smoke else BAD
    model = mlp(64, CLASSES, width=WIDTH, depth=DEPTH, activation=nn.Tanh)
    if init == "xavier":
        initialise(model, data.x[:BATCH], "xavier_normal")
    lr = RATES[optimizer]
    chosen: Optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=BETA1)
    if optimizer == "adamw":
        chosen = torch.optim.AdamW(model.parameters(), lr=lr, betas=(BETA1, BETA2))
    largest = Largest(chosen)
    rule = partial(clip_by_global_norm_, max_norm=1.0) if clip else None
    feed = digit_batches(data, BATCH, steps, seed)
    with watched(model, chosen, feed, loss_fn=OneBadBatch(bad, place), clip=rule) as run:
        loss = losses(run)
    return {"loss": final(loss), "step": largest.steps[place] / lr, "curve": thinned(loss)}


def bound(place: int) -> float:
    """Adam's step over its rate where one gradient outweighs all before it, ``place`` steps in.

    Source: Kingma & Ba (2015), section 2.1, with the bias corrections of that step, https://arxiv.org/abs/1412.6980
    """
    t = place + 1
    return (1 - BETA1) / (1 - BETA1**t) / math.sqrt((1 - BETA2) / (1 - BETA2**t))


def arm(optimizer: str, clip: bool, init: str, bad: bool = True) -> Run:
    return {"optimizer": optimizer, "clip": clip, "init": init, "bad": bad}


def draw(runs: Sequence[Run]) -> Figure:
    """Training loss through the bad batch, AdamW beside SGD."""
    figure, axes = panels("One bad batch: it takes clipping and Xavier's weights to come through", columns=2)
    settings = {
        (True, "xavier"): (GREEN, "clipping, Xavier"),
        (False, "xavier"): (RED, "no clipping, Xavier"),
        (True, "torch"): (BLUE, "clipping, torch's weights"),
        (False, "torch"): (ORANGE, "neither"),
    }
    for axis, optimizer, name in zip(axes, RATES, ("AdamW", "SGD with momentum"), strict=True):
        for (clip, init), (colour, label) in settings.items():
            rows = [run["curve"] for run in pick(runs, **arm(optimizer, clip, init))]
            shown = [[min(v, 1e3) if math.isfinite(v) else 1e3 for v in row] for row in rows]
            xs = [i * STEPS / len(shown[0]) for i in range(len(shown[0]))]
            spread(axis, xs, shown, colour, label, "-")
        axis.axvline(BAD, color="black", linestyle=":", linewidth=1)
        axis.axhline(math.log(CLASSES), color="black", linestyle=":", linewidth=1)
        axis.set_yscale("log")
        axis.set_ylim(0.02, 1e3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step; dotted: the bad batch, and guessing")
    axes[0].set_ylabel("training loss, nats")
    axes[0].legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def loss_of(*which: Any) -> Callable[[Sequence[Run]], list[float]]:
    return each("loss", **arm(*which))


STUDY = Study(
    name="adamw_clipping_xavier",
    arms=[
        *(arm(*which) for which in product(RATES, (True, False), ("xavier", "torch"))),
        arm("adamw", False, "xavier", bad=False),
    ],
    seeds=(10, 11, 12),
    values=[
        Value(
            "largest change of a weight in the bad step / lr, AdamW",
            f"{bound(BAD):.3f}, momentum of before apart",
            0.8 * bound(BAD),
            1.3 * bound(BAD),
            each("step", **arm("adamw", False, "xavier")),
        ),
        Value("the same, SGD", "no bound", 100, math.inf, each("step", **arm("sgd", False, "xavier"))),
        Value("final loss, AdamW, clipping, Xavier", "learns", 0, 0.3, loss_of("adamw", True, "xavier")),
        Value("final loss, SGD, clipping, Xavier", "learns", 0, 0.3, loss_of("sgd", True, "xavier")),
        Value(
            "final loss, AdamW, Xavier, no clipping",
            "is lost",
            1.0,
            math.inf,
            loss_of("adamw", False, "xavier"),
        ),
        Value(
            "final loss, SGD, Xavier, no clipping", "is lost", 1.0, math.inf, loss_of("sgd", False, "xavier")
        ),
        Value(
            "final loss, AdamW, clipping, torch's weights",
            "too slow",
            1.0,
            math.inf,
            loss_of("adamw", True, "torch"),
        ),
        Value(
            "final loss, AdamW, Xavier, no clipping, no bad batch",
            "not lost",
            1.0,
            math.inf,
            loss_of("adamw", False, "xavier", False),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[arm("adamw", True, "xavier"), arm("adamw", False, "xavier")],
)
