"""One optimizer for every layer of every net: `steady` trains over a wider range of learning rates than the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

import steadygrad as sg
from steadygrad.optim import LAMB, MuonAdamW, muon_groups, steady
from studies.claim import Run, Study, Value, by_seed, pick
from studies.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, panels, spread
from studies.steady_optimizer.nets import NETS, feed, guess
from studies.training import Batch, final, losses, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BOUND = 80, 0.03
RATES = tuple(10 ** (k / 2) for k in range(-6, 3))  # 0.001 to 10
DECADES = 0.5  # from one rate to the next
OTHERS = ("SGD", "AdamW", "Muon", "LAMB")
OPTIMIZERS: dict[str, Callable[[nn.Module, float], Optimizer]] = {
    "SGD": lambda model, lr: torch.optim.SGD(model.parameters(), lr, momentum=0.9),
    "AdamW": lambda model, lr: torch.optim.AdamW(model.parameters(), lr),
    "Muon": lambda model, lr: MuonAdamW(muon_groups(model, lr)),
    "LAMB": lambda model, lr: LAMB(model.parameters(), lr),
    "steady": lambda model, lr: steady(model, lr, max_ratio=BOUND),
    "unbounded": lambda model, lr: steady(model, lr, max_ratio=math.inf),
}


def falling(batches: Iterator[Batch], optimizer: Optimizer, steps: int) -> Iterator[Batch]:
    """The batches, while the learning rate falls to 0 on a straight line."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for i, batch in enumerate(batches):
        if i:
            schedule.step()
        yield batch


def measure(seed: int, smoke: bool, net: str, optimizer: str, lr: float) -> Run:
    """The loss at the end of a watched training, and how far the layers' update ratios lie apart in it."""
    steps = 40 if smoke else STEPS
    model = NETS[net]()
    taken = OPTIMIZERS[optimizer](model, lr)
    with watched(model, taken, falling(feed(net, steps, seed), taken, steps)) as run:
        loss = losses(run)
        apart = apart_in(run, model)
    return {"loss": final(loss), "apart": apart}


def apart_in(run: sg.Run, model: nn.Module) -> float:
    """The largest update ratio of a weight over the smallest, each the median over the steps with a look at it."""
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    ratios = [median(run.series("update_ratio", name)[1].tolist()) for name in weights]
    known = all(math.isfinite(r) and r > 0 for r in ratios)
    return max(ratios) / min(ratios) if known else math.inf


def decades(runs: Sequence[Run], net: str, optimizer: str) -> float:
    """Width of the rates at which a net ends below half the loss of guessing."""
    mine = pick(runs, net=net, optimizer=optimizer)
    if optimizer == "unbounded":  # below the bound it is the same
        mine += [run for run in pick(runs, net=net, optimizer="steady") if run["lr"] <= BOUND]
    return DECADES * sum(run["loss"] < 0.5 * guess(net) for run in mine)


def gain(runs: Sequence[Run], optimizer: str) -> float:
    """Decades more than the widest of the others, on the net where that is least."""
    return min(decades(runs, n, optimizer) - max(decades(runs, n, o) for o in OTHERS) for n in NETS)


def best(runs: Sequence[Run], net: str, optimizer: str) -> Run:
    """The run at the best rate."""
    return min(pick(runs, net=net, optimizer=optimizer), key=lambda run: run["loss"])


def widest_apart(runs: Sequence[Run], optimizer: str) -> float:
    """How far the update ratios lie apart at the best rate, on the net where they do most."""
    return max(best(runs, net, optimizer)["apart"] for net in NETS)


def behind(runs: Sequence[Run]) -> float:
    """Nats by which `steady` at its best rate is behind the best of the others at theirs, on its worst net."""
    return max(
        best(runs, net, "steady")["loss"] - min(best(runs, net, o)["loss"] for o in OTHERS) for net in NETS
    )


def draw(runs: Sequence[Run]) -> Figure:
    """Loss by learning rate, a panel for each net."""
    figure, axes = panels("Over which learning rates it trains", columns=len(NETS))
    colours = dict(zip(OPTIMIZERS, (GREY, ORANGE, GREEN, PURPLE, BLUE, RED), strict=True))
    seeds = sorted({run["seed"] for run in runs})
    for axis, net in zip(axes, NETS, strict=True):
        for name, colour in colours.items():
            mine = [pick(runs, net=net, optimizer=name, seed=s) for s in seeds]
            rates = [run["lr"] for run in mine[0]]
            rows = [[min(run["loss"], 3.0) for run in of] for of in mine]
            bounded = name != "unbounded"
            label = name if bounded else "steady without its bound"
            spread(axis, rates, rows, colour, label, "o-" if bounded else "o:")
        axis.axhline(0.5 * guess(net), color="black", linestyle=":", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(net, fontsize=10)
        axis.set_xlabel("learning rate at the start")
        axis.set_ylim(0, 3.05)
    axes[0].set_ylabel(f"training loss after {STEPS} steps, nats")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _named(what: Callable[..., float], **chosen: Any) -> Callable[[Sequence[Run]], list[float]]:
    return by_seed(partial(what, **chosen))


STUDY = Study(
    name="steady_optimizer",
    arms=[
        {"net": net, "optimizer": o, "lr": lr}
        for net in NETS
        for o in OPTIMIZERS
        for lr in RATES
        if o != "unbounded" or lr > BOUND
    ],
    values=[
        *(
            Value(
                f"decades of rates that train, steady, {net}",
                "wide",
                1.5,
                math.inf,
                _named(decades, net=net, optimizer="steady"),
            )
            for net in NETS
        ),
        Value(
            "decades more than the widest of SGD, AdamW, Muon, LAMB, worst net",
            "more",
            DECADES,
            math.inf,
            _named(gain, optimizer="steady"),
        ),
        Value(
            "the same without the bound on the update ratio",
            "no more",
            DECADES,
            math.inf,
            _named(gain, optimizer="unbounded"),
            control=True,
        ),
        Value(
            "largest update ratio of a layer over the smallest, steady, worst net",
            "at most 3",
            1,
            3,
            _named(widest_apart, optimizer="steady"),
        ),
        Value(
            "the same, AdamW",
            "more than 3",
            1,
            3,
            _named(widest_apart, optimizer="AdamW"),
            needed=1,
            control=True,
        ),
        Value(
            "nats behind the best other, each at its best rate, worst net",
            "0",
            -math.inf,
            0.1,
            by_seed(behind),
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[
        {"net": net, "optimizer": o, "lr": RATES[4]} for net in ("CNN", "LSTM") for o in ("steady", "AdamW")
    ],
)
