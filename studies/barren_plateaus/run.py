"""The gradient of a random circuit vanishes exponentially with its qubits; each of four remedies holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from steadygrad.quantum import (
    LayerwiseTraining,
    QuantumLayer,
    barren_plateau,
    identity_blocks_,
    run_together,
    uniform_angles_,
)
from studies.claim import Run, Study, Value, each, pick, ratios
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, panels, spread
from studies.fits import shuffled, slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUBITS, SMOKE_QUBITS = (2, 4, 6, 8, 10), (2, 3, 4)
DEEP, SHALLOW = 4, 2  # layers for each qubit, and layers
SAMPLES = 50
ADDED, STEPS, RATE = 4, 3, 0.1  # of the circuits that are trained layer by layer
GROWN_QUBITS, GROWN = 6, 16


def measure(seed: int, smoke: bool, how: str, readout: str) -> Run:
    """The variance of the derivatives for each number of qubits, and its exponent."""
    qubits = SMOKE_QUBITS if smoke else QUBITS
    found = barren_plateau(partial(HOWS[how], readout), qubits, (1,), samples=SAMPLES, seed=seed)
    decay = found.decays[0]
    return {
        "qubits": list(qubits),
        "variance": [one.variance for one in found.sampled],
        "exponent": decay.exponent,
        "interval": [decay.low, decay.high],
        "barren": decay.barren,
        "cost": trained_layer_by_layer(seed, smoke) if how == "layer-wise" else math.nan,
    }


def random_deep(readout: str, n_qubits: int, depth: int) -> QuantumLayer:
    layer = QuantumLayer(n_qubits, DEEP * n_qubits * depth, readout=readout)
    uniform_angles_(layer)
    return layer


def random_shallow(readout: str, n_qubits: int, depth: int) -> QuantumLayer:
    layer = QuantumLayer(n_qubits, SHALLOW * depth, readout=readout)
    uniform_angles_(layer)
    return layer


def small(readout: str, n_qubits: int, depth: int) -> QuantumLayer:
    return QuantumLayer(n_qubits, DEEP * n_qubits * depth, readout=readout)


def blocks(readout: str, n_qubits: int, depth: int) -> QuantumLayer:
    layer = QuantumLayer(n_qubits, DEEP * n_qubits * depth, readout=readout, mirrored=1)
    identity_blocks_(layer)
    return layer


def grown(readout: str, n_qubits: int, depth: int) -> QuantumLayer:
    """At its whole depth, when its last layers have come, and nothing has been learned on the way."""
    layer = random_deep(readout, n_qubits, depth)
    growth = LayerwiseTraining(layer, steps=1)
    while growth.step() < layer.depth:
        pass
    return layer


def trained_layer_by_layer(seed: int, smoke: bool) -> float:
    """The mean cost of circuits that have come to their whole depth by gradient descent."""
    torch.manual_seed(seed)
    n_qubits = SMOKE_QUBITS[-1] if smoke else GROWN_QUBITS
    layers = [random_deep("pair", n_qubits, 1) for _ in range(4 if smoke else GROWN)]
    growths = [LayerwiseTraining(layer, steps=STEPS, add=ADDED) for layer in layers]
    optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=RATE)
    inputs = torch.full((n_qubits,), math.pi / 4)
    while growths[0].num_steps < STEPS * DEEP * n_qubits / ADDED:
        optimizer.zero_grad()
        run_together(layers, inputs).sum().backward()
        optimizer.step()
        for growth in growths:
            growth.step()
    with torch.no_grad():
        return float(run_together(layers, inputs).mean())


HOWS: dict[str, Callable[[str, int, int], QuantumLayer]] = {
    "random": random_deep,
    "shallow": random_shallow,
    "small angles": small,
    "identity blocks": blocks,
    "layer-wise": grown,
}


def mixed_up(runs: Sequence[Run]) -> list[float]:
    """The exponent of random circuits if the numbers of qubits are shuffled."""
    return [
        -slope(r["qubits"], shuffled([math.log(v) for v in r["variance"]]))
        for r in pick(runs, how="random", readout="pair")
    ]


def draw(runs: Sequence[Run]) -> Figure:
    """Variance against qubits."""
    figure, axes = panels(
        "A random circuit has no gradient; four ways to have one (legend: exponent a qubit, 95 %)", columns=3
    )
    shown = (
        (f"<ZZ>, {DEEP} layers a qubit", "pair", ("random", "identity blocks", "small angles", "layer-wise")),
        (f"global, {DEEP} layers a qubit", "global", ("random", "identity blocks", "small angles")),
    )
    colours = dict(
        zip(
            ("random", "identity blocks", "small angles", "layer-wise"),
            (RED, BLUE, GREEN, PURPLE),
            strict=True,
        )
    )
    for axis, (title, readout, hows) in zip(axes, shown, strict=False):
        for how in hows:
            line(axis, pick(runs, how=how, readout=readout), colours[how], how)
        axis.set_title(title, fontsize=10)
    for readout, colour in (("global", ORANGE), ("local", GREY)):
        line(axes[2], pick(runs, how="shallow", readout=readout), colour, f"{readout} readout")
    axes[2].set_title(f"random, {SHALLOW} layers", fontsize=10)
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlabel("qubits")
        axis.set_xticks(QUBITS)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("variance of a derivative")
    return figure


def line(axis: Axes, arm: Sequence[Run], colour: str, label: str) -> None:
    low, high = (sorted(r["interval"][i] for r in arm)[len(arm) // 2] for i in (0, 1))
    spread(axis, arm[0]["qubits"], [r["variance"] for r in arm], colour, f"{label}: {low:.2f} to {high:.2f}")


LN2 = math.log(2)
STUDY = Study(
    name="barren_plateaus",
    arms=[
        {"how": how, "readout": readout}
        for how, readout in (
            ("random", "pair"),
            ("identity blocks", "pair"),
            ("small angles", "pair"),
            ("layer-wise", "pair"),
            ("random", "global"),
            ("identity blocks", "global"),
            ("small angles", "global"),
            ("shallow", "global"),
            ("shallow", "local"),
        )
    ],
    values=[
        Value(
            "exponent, random, two qubits read",
            "ln 2 = .69",
            0.6,
            0.8,
            each("exponent", how="random", readout="pair"),
        ),
        Value(
            "exponent, random, global",
            "2 ln 2 = 1.39",
            1.2,
            1.5,
            each("exponent", how="random", readout="global"),
        ),
        *(
            Value(
                f"exponent, {how}, two qubits read",
                "half or less of random",
                -LN2 / 2,
                LN2 / 2,
                each("exponent", how=how, readout="pair"),
            )
            for how in ("identity blocks", "small angles", "layer-wise")
        ),
        *(
            Value(
                f"exponent over that of random, {how}, global",
                "at most .5",
                -0.5,
                0.5,
                ratios("exponent", {"how": how, "readout": "global"}, {"how": "random", "readout": "global"}),
            )
            for how in ("identity blocks", "small angles")
        ),
        Value(
            "exponent over that of a global cost, local, 2 layers",
            "at most .5",
            -0.5,
            0.5,
            ratios(
                "exponent", {"how": "shallow", "readout": "local"}, {"how": "shallow", "readout": "global"}
            ),
        ),
        Value(
            f"cost reached layer by layer, {GROWN_QUBITS} qubits (least: -1)",
            "near -1",
            -1.0,
            -0.9,
            each("cost", how="layer-wise"),
        ),
        Value("exponent, random, qubits shuffled", "not .6 to .8", 0.6, 0.8, mixed_up, control=True),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"how": "random", "readout": "pair"}, {"how": "layer-wise", "readout": "pair"}],
    settings={"samples": SAMPLES, "layers a qubit": DEEP},
)
