"""A norm that adapts its statistics to the training, against BatchNorm, LayerNorm, RMSNorm and none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.nn import AdaptiveNorm, adapt_norms
from studies.claim import Run, Study, Value, by_seed, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, panels
from studies.training import Batch, digit_batches, final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, LR, LEARNED = 64, 1e-3, 0.9 * math.log(CLASSES)
KINDS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "adaptive": nn.BatchNorm1d,  # turned into adaptive ones
}
COLOURS = dict(zip(KINDS, (GREY, BLUE, ORANGE, PURPLE, GREEN), strict=True))
DEPTHS = (10, 50, 200)
SIZES = (2, 16, 256)
STEPS = {10: 100, 50: 80, 200: 50}


def measure(seed: int, smoke: bool, norm: str, depth: int, size: int, shift: bool) -> Run:
    """Loss on the test digits in training and in evaluation mode, and the time of a step."""
    data, steps = digits(), 10 if smoke else STEPS[depth]
    blocks = [m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), KINDS[norm](WIDTH), nn.ReLU())]
    model = nn.Sequential(*blocks, nn.Linear(WIDTH, CLASSES))
    for layer in list(model)[:-1:3]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if norm == "adaptive":
        adapt_norms(model, rate=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    losses = []
    began = time.process_time()
    for x, y in feed(digit_batches(data, size, steps, seed), steps, shift):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    taken = (time.process_time() - began) / steps
    (x_test, y_test), *_ = feed(iter([(data.x_test, data.y_test)]), 0, shift)
    with torch.no_grad():
        tested = F.cross_entropy(model.eval()(x_test), y_test).item()
    tested = tested if math.isfinite(tested) else math.inf
    norms = [m for m in model if isinstance(m, AdaptiveNorm)]
    return {
        "loss": final(losses),
        "tested": tested,
        "survived": float(tested < LEARNED),
        "milliseconds": round(1000 * taken, 3),
        "mix": [round(sum(float(m.mix[k]) for m in norms) / len(norms), 3) for k in range(3)]
        if norms
        else [],
        "gain": round(sum(float(m.gain) for m in norms) / len(norms), 3) if norms else 1.0,
    }


def feed(batches: Iterator[Batch], steps: int, shift: bool) -> Iterator[Batch]:
    """From the middle of the run on, three times the inputs and one more."""
    for i, (x, y) in enumerate(batches):
        yield (3 * x + 1 if shift and i >= steps / 2 else x), y


def arm(norm: str, depth: int = 10, size: int = 64, shift: bool = False) -> Run:
    return {"norm": norm, "depth": depth, "size": size, "shift": shift}


SETTINGS = {
    **{f"{depth} layers": {"depth": depth} for depth in DEPTHS},
    **{f"batches of {size}": {"size": size} for size in SIZES},
    "a shift": {"shift": True},
}


def over_best(**setting: object) -> Callable[[Sequence[Run]], list[float]]:
    """Test loss of the adaptive norm over that of the best of the others, seed by seed."""

    def of(runs: Sequence[Run]) -> float:
        losses = {
            run["norm"]: run["tested"]
            for run in runs
            if {**arm(run["norm"]), **setting}.items() <= run.items()
        }
        return losses.pop("adaptive") / min(losses.values())

    return by_seed(of)


def draw(runs: Sequence[Run]) -> Figure:
    """Test loss in every setting; time of a step."""
    figure, (left, right) = panels("The adaptive norm beside the norms it mixes", columns=2)
    for j, (norm, colour) in enumerate(COLOURS.items()):
        for i, setting in enumerate(SETTINGS.values()):
            tested = [min(run["tested"], 10.0) for run in pick(runs, **{**arm(norm), **setting})]
            left.plot([i + 0.13 * (j - 2)] * len(tested), tested, "o", color=colour, markersize=3.5,
                      label=norm if i == 0 else None)  # fmt: skip
        times = [median(each("milliseconds", **arm(norm, depth))(runs)) for depth in DEPTHS]
        right.plot(DEPTHS, times, "o-", color=colour, markersize=4)
    left.axhline(math.log(CLASSES), color=RED, linestyle=":", linewidth=1)
    left.set_yscale("log")
    left.set_xticks(range(len(SETTINGS)), list(SETTINGS), rotation=35, ha="right", fontsize=8)
    left.set_xlabel("setting; dotted: guessing; 10: worse or not finite")
    left.set_ylabel("test loss, nats")
    left.legend(frameon=False, fontsize=8, ncols=2)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("layers")
    right.set_ylabel("milliseconds a step")
    return figure


STUDY = Study(
    name="adaptive_norm",
    arms=[{**arm(norm), **setting} for setting in SETTINGS.values() for norm in KINDS],
    values=[
        *(
            Value(
                f"test loss, adaptive / best of the others, {name}",
                "as good: at most 1.1",
                0.0,
                1.1,
                over_best(**setting),
            )
            for name, setting in SETTINGS.items()
        ),
        *(
            Value(
                f"survives, adaptive, {name}",
                "1",
                1,
                1,
                each("survived", **{**arm("adaptive"), **setting}),
            )
            for name, setting in SETTINGS.items()
        ),
        Value(
            "milliseconds a step, 50 layers, adaptive / BatchNorm, medians",
            "at most 3",
            0,
            3,
            lambda runs: [
                median(each("milliseconds", **arm("adaptive", 50))(runs))
                / median(each("milliseconds", **arm("batch", 50))(runs))
            ],
        ),
        Value(
            "survives, no norm, 200 layers", "fails", 1, 1, each("survived", **arm("none", 200)), None, True
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[arm("batch"), arm("adaptive"), arm("adaptive", shift=True)],
)
