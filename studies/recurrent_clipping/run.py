"""Through T steps a gradient grows as rho^T, and where it explodes clipping decides whether a recurrent net learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.clip import AutoClip, clip_by_global_norm_
from steadygrad.init import audit
from studies.claim import Run, Study, Value, by_seed, each, pick
from studies.figure import BLUE, GREEN, GREY, ORANGE, panels
from studies.fits import shuffled
from studies.training import Batch, final, losses, thinned, watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADII = (0.9, 1.0, 1.1)
SHORT, LONG = 300, 600  # steps of time between which the growth is taken
UNITS, SYMBOLS, BATCH, STEPS, NORM = 50, 8, 32, 200, 1.0
CHANCE = math.log(2)
HARD = {"length": 50, "radius": 1.3, "lr": 0.3}
EASY = {"length": 20, "radius": 1.3, "lr": 0.05}
RULES: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "clipping": lambda: {"clip": partial(clip_by_global_norm_, max_norm=NORM)},
    "adaptive": lambda: {"clip": AutoClip()},  # learns its threshold: a new one for each run
    "guard": lambda: {"guard": "on"},
}


class Recurrence(nn.Module):
    """A linear recurrence h <- W h for so many steps."""

    def __init__(self, radius: float, steps: int) -> None:
        super().__init__()
        self.inner = nn.Linear(UNITS, UNITS, bias=False)
        self.steps = steps
        with torch.no_grad():
            scale_to(nn.init.normal_(self.inner.weight), radius)

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(self.steps):
            h = self.inner(h)
        return h


class FirstSymbol(nn.Module):
    """A tanh RNN that must say, after so many steps of noise, what it was told in the first."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(SYMBOLS, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 2)
        with torch.no_grad():
            scale_to(nn.init.normal_(self.rnn.weight_hh_l0), radius)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def scale_to(weight: Tensor, radius: float) -> None:
    """Give a square weight this spectral radius, in place."""
    weight.mul_(radius / torch.linalg.eigvals(weight).abs().max())


def first_symbols(length: int, steps: int, seed: int) -> Iterator[Batch]:
    """One of two symbols, then symbols that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        said = torch.randint(0, 2, (BATCH,), generator=generator)
        noise = torch.randint(2, SYMBOLS, (BATCH, length), generator=generator)
        yield F.one_hot(torch.cat([said[:, None], noise], 1), SYMBOLS).float(), said


def measure(seed: int, smoke: bool, part: str, radius: float, length: int, lr: float, rule: str) -> Run:
    """The growth through time by the audit, or the loss of a watched training."""
    if part == "growth":
        return {"factor": per_step(seed, radius)}
    model = FirstSymbol(radius)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    feed = first_symbols(length, 60 if smoke else STEPS, seed)
    with watched(model, optimizer, feed, **RULES[rule]()) as run:
        loss = losses(run)
        causes = [cause.cause for cause in run.causes()]
    return {"loss": final(loss), "curve": thinned(loss), "blamed": float("recurrent_growth" in causes)}


def per_step(seed: int, radius: float) -> float:
    """Factor of the gradient in a step of time, beyond the first steps, which depend on its direction."""
    grown = []
    for steps in (SHORT, LONG):
        torch.manual_seed(seed)
        (row,) = audit(Recurrence(radius, steps).double(), torch.randn(4, UNITS).double()).through_time
        grown.append(math.log(row.alone))
    return math.exp((grown[1] - grown[0]) / (LONG - SHORT))


def worst_shuffled(runs: Sequence[Run]) -> float:
    """Largest error if the radii had been given to each other's nets."""
    mine = pick(runs, part="growth")
    pairs = zip(shuffled([run["factor"] for run in mine]), RADII, strict=True)
    return max(abs(factor - radius) for factor, radius in pairs)


def draw(runs: Sequence[Run]) -> Figure:
    """Final loss of each seed by rule."""
    figure, (axis,) = panels("Recall over 50 steps: clipping decides whether the net learns")
    rules = {
        "nothing": (ORANGE, "no clipping"),
        "guard": (GREY, "the guard alone"),
        "clipping": (BLUE, "clipped to\nnorm 1"),
        "adaptive": (GREEN, "AutoClip,\nno threshold"),
    }
    for place, (rule, (colour, _)) in enumerate(rules.items()):
        found = [run["loss"] for run in pick(runs, part="recall", rule=rule, **HARD)]
        xs = [place + 0.1 * (i - (len(found) - 1) / 2) for i in range(len(found))]
        axis.plot(xs, found, "o", color=colour, markersize=8)
    axis.axhline(CHANCE, color="black", linestyle=":", linewidth=1)
    axis.text(len(rules) - 0.5, CHANCE * 1.15, "guessing", ha="right", fontsize=9)
    axis.set_yscale("log")
    axis.set_xticks(range(len(rules)), [name for _, name in rules.values()])
    axis.set_xlabel("what was done to the gradient; a dot is a seed")
    axis.set_ylabel("training loss after 200 steps, nats")
    return figure


def recall(rule: str, number: str = "loss", **task: float) -> Callable[[Sequence[Run]], list[float]]:
    return each(number, part="recall", rule=rule, **task)


GROWTH = [{"part": "growth", "radius": r, "length": 0, "lr": 0.0, "rule": "nothing"} for r in RADII]
HARD_ARMS = [{"part": "recall", **HARD, "rule": rule} for rule in RULES]
EASY_ARMS = [{"part": "recall", **EASY, "rule": rule} for rule in ("nothing", "clipping")]
STUDY = Study(
    name="recurrent_clipping",
    arms=[*GROWTH, *HARD_ARMS, *EASY_ARMS],
    seeds=(0, 1, 2, 3),
    values=[
        *(
            Value(
                f"factor a step, spectral radius {r}",
                f"{r}",
                r - 0.005,
                r + 0.005,
                each("factor", part="growth", radius=r),
            )
            for r in RADII
        ),
        Value(
            "final loss over 50 steps, no clipping",
            "fails: above ln 2 = 0.693",
            1.0,
            math.inf,
            recall("nothing", **HARD),
            needed=3,
        ),
        Value(
            "final loss over 50 steps, clipped to norm 1", "0", 0, 0.1, recall("clipping", **HARD), needed=3
        ),
        Value("final loss over 50 steps, AutoClip", "0", 0, 0.1, recall("adaptive", **HARD), needed=3),
        Value(
            "final loss over 50 steps, the guard by itself", "0", 0, 0.1, recall("guard", **HARD), needed=3
        ),
        Value(
            "final loss over 20 steps at lr 0.05, no clipping",
            "0: nothing explodes",
            0,
            0.1,
            recall("nothing", **EASY),
            needed=3,
        ),
        Value("... is recurrent growth blamed there", "no = 0", 0, 0, recall("nothing", "blamed", **EASY)),
        Value(
            "largest error of the factor with the radii shuffled",
            "fails",
            0,
            0.005,
            by_seed(worst_shuffled),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[*GROWTH, *HARD_ARMS[:3]],
)
