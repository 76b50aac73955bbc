"""The usual initialisation shrinks the gradient by 1/sqrt(3) in each tanh layer, the normalised one keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.init import audit, initialise
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each
from studies.figure import BLUE, GREY, ORANGE, panels, spread
from studies.fits import shuffled, slope
from studies.training import watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS, EXAMPLES = 5, 200
DEEP = 30  # layers at which the audit is asked for its verdict


def net(init: str, depth: int, width: int, x: Tensor) -> nn.Sequential:
    """A tanh net with the usual weights U(-1/sqrt(n), 1/sqrt(n)), or with the normalised ones."""
    model = mlp(width, 10, width=width, depth=depth, activation=nn.Tanh)
    if init == "normalised":
        initialise(model, x, "xavier_uniform", gain=1.0)
        return model
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -(width**-0.5), width**-0.5)
            nn.init.zeros_(layer.bias)
    return model


def measure(seed: int, smoke: bool, init: str) -> Run:
    """Gradients layer by layer: by the audit before training, and in the first step of a watched run."""
    width = 300 if smoke else 1000
    x, y = 0.1 * torch.randn(EXAMPLES, width), torch.randint(0, 10, (EXAMPLES,))
    model = net(init, LAYERS, width, x)
    norms = [row.grad_norm for row in audit(model, x, F.cross_entropy, y).rows[:LAYERS]]
    with watched(model, torch.optim.SGD(model.parameters(), lr=0.01), [(x, y)]) as run:
        traced = [float(run.series("grad_norm", f"{2 * i}.bias")[1][0]) for i in range(LAYERS)]
    deep = audit(net(init, DEEP, 100, x[:, :100]), x[:, :100])
    return {
        "norms": norms,
        "factor": per_layer(norms),
        "shuffled": per_layer(shuffled(norms)),
        "traced": per_layer(traced),
        "off": len(deep.off),
    }


def per_layer(norms: Sequence[float]) -> float:
    """Factor of the gradient's norm from a layer to the one before it."""
    return math.exp(-slope(range(len(norms)), [math.log(x) for x in norms]))


def draw(runs: Sequence[Run]) -> Figure:
    """Norm of the gradient by layer."""
    figure, (axis,) = panels("Going back, each layer keeps 58 % of the gradient, or all of it")
    layers = range(1, LAYERS + 1)
    for init, colour in (("usual", ORANGE), ("normalised", BLUE)):
        rows = [[n / r["norms"][-1] for n in r["norms"]] for r in runs if r["init"] == init]
        spread(axis, layers, rows, colour, f"{init} weights, measured")
        factor = 3**-0.5 if init == "usual" else 1.0
        theory = [factor ** (LAYERS - layer) for layer in layers]
        axis.plot(layers, theory, ":", color=GREY, label="theory" if init == "usual" else None)
    axis.set_yscale("log")
    axis.set_xticks(layers)
    axis.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
    axis.minorticks_off()
    axis.set_xlabel("layer (5 is next to the loss)")
    axis.set_ylabel("norm of the gradient, layer 5 = 1")
    axis.legend(frameon=False)
    return figure


def value(name: str, expected: str, init: str, middle: float, off: float, number: str = "factor") -> Value:
    return Value(name, expected, middle - off, middle + off, each(number, init=init))


STUDY = Study(
    name="glorot_gradients",
    arms=[{"init": "usual"}, {"init": "normalised"}],
    values=[
        value("factor a layer, usual weights (audit)", "1/sqrt(3) = 0.577", "usual", 0.577, 0.01),
        value("factor a layer, usual weights (trace)", "1/sqrt(3) = 0.577", "usual", 0.577, 0.02, "traced"),
        value(
            "factor a layer, normalised weights (audit)", "1, less tanh's own 1 %", "normalised", 0.99, 0.02
        ),
        value(
            "factor a layer, normalised weights (trace)",
            "1, less tanh's own 1 %",
            "normalised",
            0.99,
            0.03,
            "traced",
        ),
        Value(
            f"weights of {DEEP} layers that the audit calls off, usual",
            "most",
            20,
            DEEP,
            each("off", init="usual"),
        ),
        Value(
            f"weights of {DEEP} layers that the audit calls off, normalised",
            "0",
            0,
            0,
            each("off", init="normalised"),
        ),
        Value(
            "factor with the layers shuffled, usual",
            "fails",
            0.567,
            0.587,
            each("shuffled", init="usual"),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
)
