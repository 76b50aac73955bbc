"""A net of 200 tanh layers and a recurrence over 200 steps that explode regulate themselves and train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.init import initialise, orthogonal_recurrent_
from steadygrad.nn.models import mlp
from steadygrad.plasticity import Homeostasis
from studies.claim import Run, Study, Value, each
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, panels
from studies.training import accuracy, digit_batches, final, thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, BATCH, STEPS, GAIN = 200, 64, 64, 200, 2.5  # critical gain of tanh: 1
RATES = (0.02, 0.05)  # at 0.05 the prototype's controller failed
HOWS = ("clipping", "lsuv", "calibration", "homeostasis")
HIDDEN, LENGTH, SEQUENCES, UPDATES, ADAM_LR = 32, 200, 32, 150, 3e-3
RADII = {"relu": 1.4, "tanh": 3.0}


def measure(seed: int, smoke: bool, part: str, how: str, setting: float) -> Run:
    """Test accuracy of the deep net, or test error of the recurrent one."""
    return deep(seed, smoke, how, setting) if part == "deep" else recurrent(seed, smoke, how, setting)


def deep(seed: int, smoke: bool, how: str, lr: float) -> Run:
    data = digits()
    model = mlp(64, CLASSES, width=WIDTH, depth=60 if smoke else DEPTH, activation=nn.Tanh)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        gain = 1.0 if layer is layers[-1] else GAIN
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
        nn.init.zeros_(layer.bias)
    if how == "lsuv":
        initialise(model, data.x[:256], "lsuv")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    control = None
    if how in ("calibration", "homeostasis"):
        control = Homeostasis(model, optimizer, data.x[:BATCH], every=4)
        feed = digit_batches(data, BATCH, 10, seed + 100)
        control.calibrate(lambda: loss_of(model, *next(feed)))
        if how == "calibration":
            control.close()
    losses = []
    for x, y in digit_batches(data, BATCH, 60 if smoke else STEPS, seed):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        if how == "clipping":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if how == "homeostasis":
            control.step()
        losses.append(loss.item())
    right = accuracy(model, data.x_test, data.y_test)
    return {"score": right, "loss": final(losses), "top": max(losses), "curve": thinned(losses, 50)}


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


class LastStep(nn.Module):
    """A recurrence whose last state is read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, HIDDEN, nonlinearity=kind, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1]).squeeze(-1)


def sequences(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The target is the sum of two inputs, of the last step and of three steps before: variance 2."""
    x = torch.randn(num, LENGTH, 2, generator=generator)
    return x, x[:, -1, 0] + x[:, -4, 1]


def recurrent(seed: int, smoke: bool, how: str, radius: float) -> Run:
    kind = next(k for k, r in RADII.items() if r == radius)
    model, generator = LastStep(kind), torch.Generator().manual_seed(seed + 100)
    weight = model.rnn.weight_hh_l0
    with torch.no_grad():
        weight.normal_()
        weight.mul_(radius / torch.linalg.eigvals(weight).abs().max())
        model.rnn.bias_ih_l0.zero_(), model.rnn.bias_hh_l0.zero_()
    if how == "orthogonal":
        orthogonal_recurrent_(model.rnn)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_LR)
    control = None
    if how == "homeostasis":
        x, y = sequences(SEQUENCES, generator)
        control = Homeostasis(model, optimizer, x)
        control.calibrate(lambda: F.mse_loss(model(x), y))
    losses = []
    for _ in range(10 if smoke else UPDATES):
        x, y = sequences(SEQUENCES, generator)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if control is not None:
            control.step()
        losses.append(loss.item())
    with torch.no_grad():
        x, y = sequences(512, torch.Generator().manual_seed(5))
        error = F.mse_loss(model(x), y).item()
    return {"score": error, "loss": final(losses), "top": max(losses), "curve": thinned(losses, 50)}


def arm(part: str, how: str, setting: float) -> Run:
    return {"part": part, "how": how, "setting": setting}


def over_orthogonal(radius: float) -> Callable[[Sequence[Run]], list[float]]:
    def of(runs: Sequence[Run]) -> list[float]:
        ours, theirs = (
            median(each("score", **arm("recurrent", how, radius))(runs))
            for how in ("homeostasis", "orthogonal")
        )
        return [ours / theirs]

    return of


def draw(runs: Sequence[Run]) -> Figure:
    """Accuracy of the deep net; error of the recurrent one."""
    figure, (left, right) = panels("Nets that explode, once they regulate themselves, train", columns=2)
    for j, how in enumerate(HOWS):
        colour = (ORANGE, PURPLE, BLUE, GREEN)[j]
        for i, lr in enumerate(RATES):
            scores = each("score", **arm("deep", how, lr))(runs)
            left.plot(
                [i + 0.15 * (j - 1.5)] * len(scores), scores, "o", color=colour, label=how if i == 0 else None
            )
    left.axhline(0.1, color=GREY, linestyle=":")
    left.set_xticks(range(len(RATES)), [f"lr {lr:g}" for lr in RATES])
    left.set_xlabel("learning rate of SGD; dotted: guessing")
    left.set_ylabel(f"test accuracy of {DEPTH} tanh layers")
    left.set_ylim(0, 1)
    left.legend(frameon=False, fontsize=8, loc="center left")
    for j, (how, colour) in enumerate((("nothing", ORANGE), ("orthogonal", BLUE), ("homeostasis", GREEN))):
        for i, radius in enumerate(RADII.values()):
            scores = each("score", **arm("recurrent", how, radius))(runs)
            right.plot(
                [i + 0.15 * (j - 1)] * len(scores), scores, "o", color=colour, label=how if i == 0 else None
            )
    right.set_yscale("log")
    right.set_xticks(range(len(RADII)), [f"{kind}, radius {r:g}" for kind, r in RADII.items()])
    right.set_xlabel(f"recurrent net over {LENGTH} steps")
    right.set_ylabel("test error (guessing: 2)")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


STUDY = Study(
    name="homeostasis",
    seeds=(10, 11, 12),
    arms=[
        *(arm("deep", how, lr) for how in HOWS for lr in RATES),
        *(
            arm("recurrent", how, radius)
            for how in ("nothing", "orthogonal", "homeostasis")
            for radius in RADII.values()
        ),
    ],
    values=[
        *(
            Value(
                f"test accuracy, 200 layers, homeostasis, lr {lr:g}",
                "trains: at least 0.9",
                0.9,
                1.0,
                each("score", **arm("deep", "homeostasis", lr)),
            )
            for lr in RATES
        ),
        *(
            Value(
                f"test accuracy, 200 layers, {how} alone, lr {lr:g}",
                "guesses: at most 0.15",
                0.0,
                0.15,
                each("score", **arm("deep", how, lr)),
            )
            for how in ("clipping", "lsuv")
            for lr in RATES
        ),
        *(
            Value(
                f"largest loss, recurrence, {kind} radius {radius:g}",
                "no explosion: at most 10 times the 2 of guessing",
                0.0,
                20.0,
                each("top", **arm("recurrent", "homeostasis", radius)),
            )
            for kind, radius in RADII.items()
        ),
        *(
            Value(
                f"test error, {kind} radius {radius:g}, homeostasis / orthogonal, medians",
                "at most 1.5",
                0.0,
                1.5,
                over_orthogonal(radius),
            )
            for kind, radius in RADII.items()
        ),
        Value(
            "test accuracy, 200 layers, calibration without scaling in training, lr 0.05",
            "fails",
            0.9,
            1.0,
            each("score", **arm("deep", "calibration", 0.05)),
            control=True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[
        arm("deep", "clipping", 0.02),
        arm("deep", "homeostasis", 0.05),
        arm("recurrent", "homeostasis", 3.0),
    ],
)
