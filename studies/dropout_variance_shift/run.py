"""Dropout in front of batch normalisation: the variance at test time is not the one that was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.nn import Residual
from studies.claim import Run, Study, Value, each, pick, ratios
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, panels, spread
from studies.training import accuracy, digit_batches, final, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, BLOCKS, BATCH, LR, STEPS = 128, 4, 64, 1e-3, 300
RATES = (0.1, 0.3, 0.5, 0.7)
HALF = 0.5


def block(place: str, rate: float) -> nn.Module:
    """BatchNorm, Linear, ReLU: with dropout before, at the end of a residual branch, or none."""
    layers = [nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    if place == "branch":
        return Residual(nn.Sequential(*layers), placement=None, dropout=rate)
    return nn.Sequential(nn.Dropout(rate if place == "before" else 0.0), *layers)


def net(place: str, rate: float) -> nn.Sequential:
    """Stem, blocks, head; with ``after`` the one dropout stands behind the last BatchNorm."""
    blocks = [block(place, rate) for _ in range(BLOCKS)]
    last = nn.Dropout(rate if place == "after" else 0.0)
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), *blocks, last, nn.Linear(WIDTH, CLASSES))


def measure(seed: int, smoke: bool, place: str, rate: float) -> Run:
    """A watched training; then what each BatchNorm sees at test time beside what it has learned."""
    data = digits()
    model = net(place, rate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with watched(model, optimizer, digit_batches(data, BATCH, 100 if smoke else STEPS, seed)) as run:
        loss = losses(run)
    model.eval()
    seen, norms = at_test(model, data.x), [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    shift = [float(x.var(0).sum() / norm.running_var.sum()) for x, norm in zip(seen, norms, strict=True)]
    with torch.no_grad():
        test = F.cross_entropy(model(data.x_test), data.y_test).item()
    return {
        "loss": final(loss),
        "test": test,
        "accuracy": accuracy(model, data.x_test, data.y_test),
        "shift": shift[0],
        "last": shift[-1],
        "theory": theory(seen[0], rate),
        "by_layer": shift,
    }


@torch.no_grad()
def at_test(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The input of each BatchNorm of a net in eval mode."""
    seen: list[Tensor] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    handles = [norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for norm in norms]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def theory(x: Tensor, rate: float) -> float:
    """Variance at test over that in training where dropout comes first: v / ((c^2 + v) / p - c^2), p = 1 - rate.

    Source: variance of a unit of mean c and variance v times a Bernoulli number over p; Li et al. (2019),
    https://arxiv.org/abs/1801.05134
    """
    c, v = x.mean(0), x.var(0)
    return float(v.sum() / ((c.square() + v) / (1 - rate) - c.square()).sum())


def over_theory(runs: Sequence[Run], place: str) -> list[float]:
    """The measured shift over the theory's, of each rate and seed."""
    return [run["shift"] / run["theory"] for run in pick(runs, place=place)]


def draw(runs: Sequence[Run]) -> Figure:
    """The shift by rate, beside theory; the shift by layer."""
    figure, axes = panels("Dropout before BatchNorm: at test time the variance is another", columns=2)
    seeds = sorted({run["seed"] for run in runs})
    rows = [[run["shift"] for run in pick(runs, place="before", seed=s)] for s in seeds]
    said = [[run["theory"] for run in pick(runs, place="before", seed=s)] for s in seeds]
    spread(axes[0], RATES, said, GREY, "theory", ":")
    spread(axes[0], RATES, rows, ORANGE, "measured", "o")
    axes[0].set_xlabel("share dropped")
    axes[0].set_ylabel("variance at test / variance learned")
    for place, colour, name in (
        ("after", BLUE, "behind the last BatchNorm"),
        ("branch", GREEN, "at the end of residual branches"),
        ("before", ORANGE, "before each BatchNorm"),
    ):
        layers = [run["by_layer"] for run in pick(runs, place=place, rate=HALF)]
        spread(axes[1], range(1, BLOCKS + 1), layers, colour, name)
    axes[1].set_xlabel("BatchNorm layer; half dropped")
    axes[1].set_xticks(range(1, BLOCKS + 1))
    for axis in axes:
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set_ylim(0, 1.3)
        axis.legend(frameon=False, loc="lower left")
    return figure


BEFORE, AFTER, BRANCH = ({"place": p, "rate": HALF} for p in ("before", "after", "branch"))
STUDY = Study(
    name="dropout_variance_shift",
    arms=[*({"place": "before", "rate": rate} for rate in RATES), AFTER, BRANCH],
    seeds=(10, 11, 12),
    values=[
        Value(
            "shift at the first BatchNorm over theory, 10 to 70 % dropped",
            "1",
            0.9,
            1.1,
            lambda runs: over_theory(runs, "before"),
        ),
        Value("shift at the last, dropout behind it", "1: none", 0.9, 1.1, each("last", **AFTER)),
        Value(
            "shift at the last, residual branches / before each",
            "skips dilute it: above 1.3",
            1.3,
            float("inf"),
            ratios("last", BRANCH, BEFORE),
        ),
        Value(
            "test loss, before each / behind the last",
            "worse: above 1",
            1.0,
            float("inf"),
            ratios("test", BEFORE, AFTER),
        ),
        Value(
            "shift over theory where the dropout is behind",
            "fails",
            0.9,
            1.1,
            lambda runs: over_theory(runs, "after"),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[BEFORE, AFTER],
)
