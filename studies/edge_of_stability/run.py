"""Full-batch gradient descent drives the sharpness up to 2 / lr, and Adam the preconditioned sharpness to 38 / lr."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Optimizer

import steadygrad as sg
from steadygrad.init import initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, panels, spread
from studies.training import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES, WIDTH = 400, 100
LOOK, LAST = 100, 5  # steps between two looks; looks that are averaged
BETA1, BETA2 = 0.9, 0.99
STEPS = {"gd": 1500, "adam": 2000}
THRESHOLD = {"gd": 2.0, "adam": (2 + 2 * BETA1) / (1 - BETA1)}  # sharpness times learning rate


class Scaled(nn.Module):
    """A weight as a scale times another one, for ``torch.nn.utils.parametrize``."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        return self.scale * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.scale


def preconditioned(model: nn.Module, optimizer: torch.optim.Adam) -> nn.Module:
    """The same function of z = P^(1/2) w: its Hessian is P^(-1/2) H P^(-1/2), with Adam's P."""
    twin = copy.deepcopy(model)
    scales = []
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        step, (beta1, beta2) = float(state["step"]), optimizer.param_groups[0]["betas"]
        second = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + optimizer.param_groups[0]["eps"]
        scales.append(((1 - beta1**step) * second).rsqrt())
    names = [name.rsplit(".", 1) for name, _ in twin.named_parameters()]
    for (module, name), scale in zip(names, scales, strict=True):
        parametrize.register_parametrization(twin.get_submodule(module), name, Scaled(scale))
    return twin


def mse(output: Tensor, target: Tensor) -> Tensor:
    """The paper's: half the squared error of an example, mean over examples."""
    return 0.5 * (output - target).square().sum(1).mean()


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return mse(model(batch[0]), batch[1])


def build(optimizer: str, lr: float) -> tuple[nn.Module, Optimizer, Batch]:
    """A tanh net on 400 digits, taken whole in each step."""
    data = digits()
    batch = data.x[:EXAMPLES], F.one_hot(data.y[:EXAMPLES], CLASSES).float()
    model = mlp(64, CLASSES, width=WIDTH, depth=2, activation=nn.Tanh)
    initialise(model, batch[0], "xavier_normal", gain=1.0)
    if optimizer == "gd":
        return model, torch.optim.SGD(model.parameters(), lr=lr), batch
    return model, torch.optim.Adam(model.parameters(), lr=lr, betas=(BETA1, BETA2)), batch


def measure(seed: int, smoke: bool, optimizer: str, lr: float) -> Run:
    """The forecast before the first step, and the sharpness by a forecast every 100 steps of the training."""
    model, updates, batch = build(optimizer, lr)
    before = sg.forecast(model, loss_of, batch, updates)
    steps = 200 if smoke else STEPS[optimizer]
    curve, raw, loss = [], math.nan, math.nan
    for step in range(steps):
        updates.zero_grad()
        value = loss_of(model, batch)
        value.backward()
        updates.step()
        loss = value.item()
        if not math.isfinite(loss):
            break
        if (step + 1) % LOOK == 0:
            raw = lr * sg.forecast(model, loss_of, batch).sharpness
            seen = (
                raw
                if optimizer == "gd"
                else lr * sg.forecast(preconditioned(model, updates), loss_of, batch).sharpness
            )
            curve.append(seen / THRESHOLD[optimizer])
    return {
        "edge": fmean(curve[-LAST:]) if math.isfinite(loss) else math.nan,
        "raw": raw / THRESHOLD[optimizer],
        "curve": curve,
        "loss": loss,
        "limit": before.lr_limit,
        "times_limit": lr / before.lr_limit,
        "flagged": float(before.will_fail),
    }


def draw(runs: Sequence[Run]) -> Figure:
    """Sharpness over its limit, by step."""
    figure, (axis,) = panels("Training climbs to the edge of stability and stays there")
    colours = iter((BLUE, GREEN, ORANGE, PURPLE))
    for arm in ARMS:
        mine = [run["curve"] for run in runs if (run["optimizer"], run["lr"]) == tuple(arm.values())]
        if all(
            math.isfinite(run["loss"]) for run in runs if (run["optimizer"], run["lr"]) == tuple(arm.values())
        ):
            name = {"gd": "gradient descent", "adam": "Adam"}[arm["optimizer"]]
            xs = [LOOK * (i + 1) for i in range(len(mine[0]))]
            spread(axis, xs, mine, next(colours), f"{name}, lr {arm['lr']:g}", "-")
    axis.axhline(1, color=GREY, linestyle=":", label="limit: 2 / lr, Adam 38 / lr")
    axis.set_ylim(0, 1.4)
    axis.set_xlabel("step (all data in each)")
    axis.set_ylabel("sharpness (Adam: preconditioned) / limit")
    axis.legend(frameon=False, loc="lower right")
    return figure


def edge(optimizer: str, lr: float, low: float, high: float) -> Value:
    limit = "2 / lr" if optimizer == "gd" else "38 / lr"
    return Value(
        f"sharpness / ({limit}), {optimizer} lr {lr:g}",
        "1",
        low,
        high,
        each("edge", optimizer=optimizer, lr=lr),
    )


TOO_LARGE = {"optimizer": "gd", "lr": 0.4}
ARMS = [
    {"optimizer": "gd", "lr": 0.15},
    {"optimizer": "gd", "lr": 0.2},
    TOO_LARGE,
    {"optimizer": "adam", "lr": 1e-4},
    {"optimizer": "adam", "lr": 3e-4},
]
STUDY = Study(
    name="edge_of_stability",
    arms=ARMS,
    values=[
        edge("gd", 0.15, 0.95, 1.08),
        edge("gd", 0.2, 0.95, 1.08),
        edge("adam", 1e-4, 0.9, 1.1),
        edge("adam", 3e-4, 0.9, 1.1),
        Value("forecast before step 1: gd lr 0.4 will fail", "yes = 1", 1, 1, each("flagged", **TOO_LARGE)),
        Value(
            "forecast before step 1: gd lr 0.15 will fail",
            "no = 0",
            0,
            0,
            each("flagged", optimizer="gd", lr=0.15),
        ),
        Value(
            "plain sharpness / (38 / lr), adam lr 0.0001",
            "fails",
            0.9,
            1.1,
            each("raw", optimizer="adam", lr=1e-4),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"optimizer": "gd", "lr": 0.2}, TOO_LARGE, {"optimizer": "adam", "lr": 3e-4}],
)
