"""At the start a post-LN Transformer's last gradient is as large at any depth, a pre-LN one's falls as 1/sqrt(L)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

import steadygrad as sg
from steadygrad.init import initialise
from steadygrad.nn.models import transformer_decoder
from studies.claim import Run, Study, Value, by_seed, each, pick
from studies.figure import BLUE, GREY, ORANGE, panels, spread
from studies.fits import exponent, shuffled
from studies.training import watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTHS = (2, 4, 8, 16, 32)
WARNED, LR, WARM_UP = 16, 1e-3, 1000  # layers, learning rate and steps of warm-up of what is forecast
VOCABULARY, LENGTH, SEQUENCES, WIDTH = 1000, 32, 8, 128


def measure(seed: int, smoke: bool, part: str, placement: str, depth: int, warm_up: bool) -> Run:
    """The norm as the trace of a watched step has it; or what the forecast says of Adam before the first step."""
    width = 64 if smoke and part == "gradient" else WIDTH
    tokens = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1))
    model = net(placement, depth, width, tokens)
    if part == "forecast":
        return foretold(model, tokens, warm_up)
    with watched(
        model,
        torch.optim.Adam(model.parameters(), lr=0.0),
        [(tokens[:, :-1], tokens[:, 1:])],
        loss_fn=next_token,
    ) as run:
        norm = float(run.series("grad_norm", f"layers.{depth - 1}.feed_forward.fn.2.weight")[1][0])
    return {"norm": norm}


def net(placement: str, depth: int, width: int, tokens: Tensor) -> nn.Module:
    """A Transformer as the theorem has it."""
    model = transformer_decoder(
        depth=depth, d_model=width, num_heads=1, vocab_size=VOCABULARY, max_len=LENGTH,
        dim_feedforward=width, activation=nn.ReLU, placement=placement,
    )  # fmt: skip
    initialise(model, tokens[:, :-1], "xavier_normal", gain=1.0)
    nn.init.normal_(model.embedding.weight)  # what enters has variance 1, as the theorem assumes
    nn.init.zeros_(model.positions.weight)
    return model


def foretold(model: nn.Module, tokens: Tensor, warm_up: bool) -> Run:
    """Whether the forecast says that the training fails for want of a warm-up."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    if warm_up:
        LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    batch = tokens[:, :-1], tokens[:, 1:]
    found = sg.forecast(model, lambda m, b: next_token(m(b[0]), b[1]), batch, optimizer)
    blamed = bool(found.causes) and found.causes[0].cause == "warmup_missing"
    return {"warned": float(found.will_fail and blamed), "times_limit": found.lr / found.lr_limit}


def next_token(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def power(runs: Sequence[Run], placement: str, mixed: bool = False) -> float:
    """The power of depth that the norm goes with."""
    mine = pick(runs, part="gradient", placement=placement)
    norms = [run["norm"] for run in mine]
    return exponent([run["depth"] for run in mine], shuffled(norms) if mixed else norms)


def draw(runs: Sequence[Run]) -> Figure:
    """Norm by depth."""
    figure, (axis,) = panels("Post-LN: as large at any depth. Pre-LN: smaller in deeper nets")
    for placement, colour, theory in (("post", ORANGE, 0.0), ("pre", BLUE, -0.5)):
        seeds = sorted({run["seed"] for run in runs})
        rows = [
            [run["norm"] for run in pick(runs, part="gradient", placement=placement, seed=s)] for s in seeds
        ]
        spread(axis, DEPTHS, rows, colour, f"{placement}-LN, measured")
        start = sorted(row[0] for row in rows)[len(rows) // 2]
        label = "theory: L^0 and L^(-1/2)" if placement == "post" else None
        axis.plot(DEPTHS, [start * (d / DEPTHS[0]) ** theory for d in DEPTHS], ":", color=GREY, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(DEPTHS, [str(d) for d in DEPTHS])
    axis.set_xlabel("layers of the Transformer, L")
    axis.set_ylabel("gradient norm, last feed-forward layer")
    axis.legend(frameon=False)
    return figure


def arm(placement: str, depth: int, part: str = "gradient", warm_up: bool = False) -> Run:
    return {"part": part, "placement": placement, "depth": depth, "warm_up": warm_up}


COLD = arm("post", WARNED, "forecast")
WARM = arm("post", WARNED, "forecast", warm_up=True)
PRE = arm("pre", WARNED, "forecast")
STUDY = Study(
    name="layer_norm_placement",
    arms=[*(arm(p, d) for p in ("pre", "post") for d in DEPTHS), COLD, WARM, PRE],
    values=[
        Value("power of L, pre-LN", "-1/2", -0.6, -0.4, by_seed(lambda runs: power(runs, "pre"))),
        Value("power of L, post-LN", "0", -0.1, 0.1, by_seed(lambda runs: power(runs, "post"))),
        Value("forecast, post-LN, 16 layers, Adam: warm-up missing", "yes = 1", 1, 1, each("warned", **COLD)),
        Value("... with a warm-up of 1,000 steps", "no = 0", 0, 0, each("warned", **WARM)),
        Value("... pre-LN without one", "no = 0", 0, 0, each("warned", **PRE)),
        Value(
            "power of L with the depths shuffled, pre-LN",
            "fails",
            -0.6,
            -0.4,
            by_seed(lambda runs: power(runs, "pre", mixed=True)),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[*(arm(p, d) for p in ("pre", "post") for d in (2, 4, 8)), COLD],
)
