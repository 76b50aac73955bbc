"""The initialisation and the connections decide how deep a net can be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from studies.claim import Run, Study, Value, pick
from studies.common import batches, digits
from studies.depth.nets import ROWS, Row
from studies.depth.show import draw

SECONDS = 60.0  # of one core, in training
BATCH = 64
TRAINED = 0.9  # share of the test digits
HOPELESS, FEW = 0.15, 20  # of the test digits after a quarter of the time and some steps: it is given up


def measure(seed: int, smoke: bool, net: str, depth: int, init: str) -> Run:
    """One cell: build, initialise, measure, train."""
    row = ROWS[net]
    data = digits()
    torch.manual_seed(seed)
    model = row.build(depth)
    example = row.feed(data.x[:BATCH], depth)
    scheme = row.inits[init]
    try:
        if scheme is not None:
            scheme(model, example)
    except ValueError as error:
        return {"end": "not initialised", "why": str(error)}
    first, last = row.norms(model, example, data.y[:BATCH])
    trained = train(row, model, depth, seed, 0.0 if smoke else SECONDS)
    return {"first": first, "last": last, **trained}


def train(row: Row, model: nn.Module, depth: int, seed: int, seconds: float) -> Run:
    """AdamW without clipping, until it knows the digits, blows up, or the time is over."""
    data = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=row.lr(depth), fused=True)
    best, steps, started = 0.0, 0, time.process_time()
    looked = started  # when the test digits were last asked
    for index in batches(len(data.y), BATCH, seed):
        loss = F.cross_entropy(model(row.feed(data.x[index], depth)), data.y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        now = time.process_time()
        end = (
            "non-finite"
            if not math.isfinite(loss.item())
            else "out of time"
            if now - started > seconds
            else ""
        )
        if end or now - looked > max(0.4, 0.05 * (now - started)):
            looked = now
            best = max(best, accuracy(row, model, depth))
            hopeless = best < HOPELESS and now - started > seconds / 4 and steps >= FEW
            end = end or ("trained" if best >= TRAINED else "given up" if hopeless else "")
        if end:
            return {
                "end": "trained" if best >= TRAINED else end,
                "accuracy": best,
                "steps": steps,
                "seconds": round(time.process_time() - started, 1),
            }
    raise AssertionError("batches never end")


@torch.no_grad()
def accuracy(row: Row, model: nn.Module, depth: int) -> float:
    """Share of the test digits that are told right."""
    data = digits()
    model.eval()
    told = model(row.feed(data.x_test, depth)).argmax(1)
    model.train()
    return (told == data.y_test).float().mean().item()


def trained(net: str, init: str, depth: int) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: 1 where it learned the digits within the minute."""
    return lambda runs: [
        float(run["end"] == "trained") for run in pick(runs, net=net, init=init, depth=depth)
    ]


def best(net: str, depth: int) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: how many initialisations of a net learned the digits."""
    return lambda runs: [float(sum(run["end"] == "trained" for run in pick(runs, net=net, depth=depth)))]


def ratio(net: str, init: str, depth: int) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: the gradient of the first block over the last's."""
    return lambda runs: [run["first"] / run["last"] for run in pick(runs, net=net, init=init, depth=depth)]


yes, no = partial(Value, expected="yes = 1", low=1, high=1), partial(Value, expected="no = 0", low=0, high=0)
STUDY = Study(
    name="depth",
    arms=[
        {"net": net, "depth": d, "init": init}
        for net, row in ROWS.items()
        for d in row.depths
        for init in row.inits
    ],
    values=[
        yes(
            name="orthogonal tanh net of 1,000 layers trains",
            of=trained("plain MLP, tanh", "orthogonal", 1000),
        ),
        no(name="Gaussian tanh net of 200 layers trains", of=trained("plain MLP, tanh", "xavier", 200)),
        Value(
            "its gradient, first layer over last", "kept", 0.1, 10, ratio("plain MLP, tanh", "xavier", 200)
        ),
        no(name="plain ReLU nets of 200 layers that train", of=best("plain MLP, ReLU", 200)),
        yes(
            name="residual net of 1,000 blocks, branches scaled, trains",
            of=trained("residual MLP", "auto", 1000),
        ),
        no(name="residual net of 1,000 blocks, He's weights, trains", of=trained("residual MLP", "he", 1000)),
    ],
    measure=measure,
    draw=draw,
    seeds=(0,),
    smoke_arms=[
        {"net": "plain MLP, tanh", "depth": 10, "init": "xavier"},
        {"net": "residual MLP", "depth": 10, "init": "auto"},
    ],
    image="depth.png",
    settings={"seconds_a_run": SECONDS, "batch": BATCH, "trained": TRAINED},
)
