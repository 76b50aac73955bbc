"""The squared gradient of a deep net is multiplied by chi = sigma_w^2 E[tanh'^2] in each layer, which is 1 at 1.76."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from steadygrad.init import audit, chi, critical_point, depth_limits, fixed_point
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, by_seed, each
from studies.figure import BLUE, GREY, RED, panels
from studies.fits import shuffled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMA_B = 0.05**0.5
VARIANCES = (1.0, 1.3, 1.76, 2.5, 4.0)  # sigma_w^2
CRITICAL = 1.76
FATES = {1.0: "vanishes", 1.3: "vanishes", 1.76: "holds", 2.5: "explodes", 4.0: "explodes"}
FAR = 10.0  # times larger or smaller, over 60 layers: then a gradient explodes or vanishes
CLOSE = 0.02  # in log chi, which is 0.1 in the variance


def measure(seed: int, smoke: bool, variance: float) -> Run:
    """Growth of the gradient in a net of 60 layers, by the audit, with inputs at the fixed point of the signal."""
    width, depth = (200, 30) if smoke else (600, 60)
    sigma_w = math.sqrt(variance)
    model = mlp(width, width, width=width, depth=depth, activation=nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=sigma_w / math.sqrt(width))
            nn.init.normal_(layer.bias, std=SIGMA_B)
    q = fixed_point("tanh", sigma_w, SIGMA_B)
    x = torch.randn(16, width) * math.sqrt((q - SIGMA_B**2) / variance)
    norms = [row.grad_norm for row in audit(model, x).rows[:depth]]
    theory = math.log(chi("tanh", sigma_w, SIGMA_B))
    log_chi = 2 * math.log(norms[0] / norms[-1]) / (depth - 1)
    limits = depth_limits("tanh", sigma_w, SIGMA_B, q=q, width=width, factor=FAR, max_depth=depth)
    return {
        "log_chi": log_chi,
        "theory": theory,
        "off": log_chi - theory,
        "norms": norms,
        "fate": limits.backward.fate,
        "measured_fate": fate(norms[0] / norms[-1]),
    }


def fate(growth: float) -> str:
    """What became of a gradient that grew by this factor from the last layer to the first."""
    return "explodes" if growth > FAR else "vanishes" if growth < 1 / FAR else "holds"


def crossing(runs: Sequence[Run]) -> float:
    """Where the measured line through its neighbours crosses 0."""
    points = [(run["variance"], run["log_chi"]) for run in runs]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if y0 < 0 <= y1:
            return x0 - y0 * (x1 - x0) / (y1 - y0)
    return math.nan


def foretold(runs: Sequence[Run]) -> float:
    """Nets whose fate the depth predictor gave rightly: as the theory has it, and as the gradient went."""
    return sum(run["fate"] == run["measured_fate"] == FATES[run["variance"]] for run in runs)


def worst_shuffled(runs: Sequence[Run]) -> float:
    """Largest difference if the measured nets had been given each other's labels."""
    pairs = zip(shuffled([run["log_chi"] for run in runs]), [run["theory"] for run in runs], strict=True)
    return max(abs(ours - theory) for ours, theory in pairs)


def draw(runs: Sequence[Run]) -> Figure:
    """Measured points on the curve of theory."""
    figure, (axis,) = panels("Order, chaos, and the one variance between them")
    xs = [0.8 + 0.05 * i for i in range(70)]
    axis.plot(
        xs, [math.log(chi("tanh", math.sqrt(x), SIGMA_B)) for x in xs], color=GREY, label="theory: log chi"
    )
    axis.plot(
        [r["variance"] for r in runs],
        [r["log_chi"] for r in runs],
        "o",
        color=BLUE,
        label="60 layers, measured",
    )
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axvline(CRITICAL, color=RED, linestyle=":", label=f"critical: {CRITICAL}")
    axis.text(2.9, 0.03, "gradient explodes", fontsize=9)
    axis.text(0.75, -0.05, "gradient vanishes", fontsize=9)
    axis.set_xlabel("variance of the weights, sigma_w^2 (times 1/n)")
    axis.set_ylabel("log growth of the squared gradient, per layer")
    axis.legend(frameon=False)
    return figure


def point(variance: float) -> Value:
    theory = math.log(chi("tanh", math.sqrt(variance), SIGMA_B))
    low, high = theory - CLOSE, theory + CLOSE
    return Value(f"log chi at {variance}", f"{theory:.4f}", low, high, each("log_chi", variance=variance))


STUDY = Study(
    name="order_to_chaos",
    arms=[{"variance": v} for v in VARIANCES],
    values=[
        *map(point, VARIANCES),
        Value(
            "critical variance by sg.init.critical_point",
            "1.76",
            1.755,
            1.765,
            lambda runs: [critical_point("tanh", SIGMA_B).sigma_w ** 2],
        ),
        Value("variance at which the measured line crosses 0", "1.76", 1.66, 1.86, by_seed(crossing)),
        Value("of five nets, fates that sg.init.depth_limits gives rightly", "5", 5, 5, by_seed(foretold)),
        Value(
            "largest difference with the labels shuffled", "fails", 0, CLOSE, by_seed(worst_shuffled), 1, True
        ),
    ],
    measure=measure,
    draw=draw,
)
