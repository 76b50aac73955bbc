"""Which initialisation suits which activation is known before training, from the variance map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from steadygrad.init import audit, chi, critical_point, initialise, variance_map
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, by_seed, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREEN, GREY, ORANGE, panels, spread
from studies.fits import shuffled
from studies.training import digit_batches, final, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, SHALLOW, WIDE, WIDTH, EXAMPLES = 30, 10, 512, 64, 64
BATCH, LR, STEPS = 64, 0.01, 250
HOLDS = 30.0  # factor within which signal and gradient must stay, that of sg.init.audit
LEARNED = 2.0  # nats; guessing is ln 10 = 2.303
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "selu": nn.SELU}
SCHEMES: dict[str, dict[str, Any]] = {
    "xavier": {"scheme": "xavier_normal", "gain": 1.0},
    "he": {"scheme": "he_normal", "gain": math.sqrt(2)},
    "orthogonal": {"scheme": "orthogonal"},  # at the activation's own critical point
}
STABLE = [(a, i) for a in ACTIVATIONS for i in SCHEMES if a != "gelu" or i == "xavier"]
"""The cells whose variance map does not repel: a net of finite width stays near it."""


class Theory(NamedTuple):
    """What the variance map of an infinitely wide net says."""

    profile: list[float]  # log of the gradient's norm, each layer over the last
    holds: bool


def theory(activation: str, init: str, depth: int) -> Theory:
    """Follow variance and gradient through a plain net whose inputs have variance 1."""
    at = critical_point(activation)
    sigma_w, sigma_b = {"xavier": (1.0, 0.0), "he": (math.sqrt(2), 0.0)}.get(init, (at.sigma_w, at.sigma_b))
    first = q = sigma_w**2 + sigma_b**2
    steps, variances = [], []
    for _ in range(depth - 1):
        steps.append(math.log(chi(activation, sigma_w, sigma_b, q)) / 2)
        q = variance_map(activation, q, sigma_w, sigma_b)
        variances.append(math.log(q / first) / 2)
    profile = [sum(steps[k:]) for k in range(depth)]
    far = max(abs(x) for x in (*profile, *variances))
    return Theory(profile, far < math.log(HOLDS))


def net(activation: str, init: str, width: int, depth: int, x: torch.Tensor) -> nn.Sequential:
    """A plain net with one of the initialisations."""
    model = mlp(x.shape[1], CLASSES, width=width, depth=depth, activation=ACTIVATIONS[activation])
    initialise(model, x, **SCHEMES[init])
    return model


def measure(seed: int, smoke: bool, activation: str, init: str, depth: int) -> Run:
    """The gradient by layer before training, and the loss of a watched training."""
    data = digits()
    x = torch.randn(EXAMPLES, 128 if smoke else WIDE)
    rows = audit(net(activation, init, x.shape[1], depth, x), x).rows[:depth]
    said = theory(activation, init, depth)
    profile = [math.log(row.grad_norm / rows[-1].grad_norm) for row in rows]
    model = net(activation, init, WIDTH, depth, data.x[:BATCH])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    with watched(model, optimizer, digit_batches(data, BATCH, 4 if smoke else STEPS, seed)) as run:
        loss = losses(run)
    return {
        "a_layer": profile[0] / (depth - 1),
        "expected": said.profile[0] / (depth - 1),
        "holds": float(said.holds),
        "loss": final(loss),
        "profile": [float(f"{v:.4g}") for v in profile],
    }


def worst(runs: Sequence[Run]) -> float:
    """Largest difference from theory of the cells that do not repel."""
    stable = [run for run in runs if (run["activation"], run["init"]) in STABLE]
    return max(abs(run["a_layer"] - run["expected"]) for run in stable)


def worst_shuffled(runs: Sequence[Run]) -> float:
    """The same with each other's theory."""
    said = shuffled([run["expected"] for run in runs])
    return max(abs(run["a_layer"] - other) for run, other in zip(runs, said, strict=True))


def agreed(depth: int, others: bool = False) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: cells of 12 that the theory foretells; ``others``: by what it says of another."""

    def of(runs: Sequence[Run]) -> float:
        mine = pick(runs, depth=depth)
        said = [run["holds"] for run in mine]
        learned = [float(run["loss"] < LEARNED) for run in mine]
        return float(sum(a == b for a, b in zip(shuffled(said) if others else said, learned, strict=True)))

    return by_seed(of)


def draw(runs: Sequence[Run]) -> Figure:
    """The gradient by layer, one panel an activation; an open end did not learn."""
    figure, axes = panels(
        "Each activation has its own right weights: 30 layers, before training", columns=4, height=4.2
    )
    colours = {"xavier": ORANGE, "he": BLUE, "orthogonal": GREEN}
    names = {"xavier": "Xavier, gain 1", "he": "He, gain 1.41", "orthogonal": "orthogonal, critical"}
    for axis, activation in zip(axes, ACTIVATIONS, strict=True):
        for init, colour in colours.items():
            mine = pick(runs, activation=activation, init=init, depth=DEPTH)
            rows = [[max(-8.0, v / math.log(10)) for v in run["profile"]] for run in mine]
            spread(
                axis, range(1, DEPTH + 1), rows, colour, names[init], "--" if init == "orthogonal" else "-"
            )
            said = theory(activation, init, DEPTH).profile
            axis.plot(
                range(1, DEPTH + 1), [max(-8.0, v / math.log(10)) for v in said], ":", color=GREY, linewidth=1
            )
            learned = sum(run["loss"] < LEARNED for run in mine) * 2 > len(mine)
            end = sorted(row[0] for row in rows)[len(rows) // 2]
            axis.plot(1, end, "o", color=colour, markerfacecolor=colour if learned else "white", markersize=9)
        axis.set_title(
            {"relu": "ReLU", "gelu": "GELU", "selu": "SELU"}.get(activation, activation), fontsize=10
        )
        axis.set_ylim(-8.5, 3)
        axis.set_xlabel("layer; full dot: the net learned, open: it did not")
    axes[0].set_ylabel("log10 of the gradient, layer over last layer")
    axes[0].legend(frameon=False, loc="lower right")
    return figure


STUDY = Study(
    name="init_by_activation",
    arms=[
        *({"activation": a, "init": i, "depth": DEPTH} for a in ACTIVATIONS for i in SCHEMES),
        *({"activation": a, "init": i, "depth": SHALLOW} for a in ACTIVATIONS for i in SCHEMES),
    ],
    seeds=(20, 21, 22),
    values=[
        Value(
            "gradient a layer (log), largest difference from theory",
            "0",
            0,
            0.02,
            by_seed(lambda r: worst(pick(r, depth=DEPTH))),
        ),
        Value("30 layers: cells of 12 whose learning the theory foretells", "12", 11, 12, agreed(DEPTH)),
        Value("10 layers: the same", "12", 11, 12, agreed(SHALLOW)),
        Value(
            "largest difference with the cells shuffled",
            "fails",
            0,
            0.02,
            by_seed(lambda r: worst_shuffled(pick(r, depth=DEPTH))),
            1,
            True,
        ),
        Value("30 layers: foretold of another cell", "fails", 11, 12, agreed(DEPTH, others=True), 1, True),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"activation": "relu", "init": i, "depth": DEPTH} for i in SCHEMES],
)
