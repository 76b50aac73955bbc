"""A flipped bit in a matrix product is found by taking the step again, and the run goes on as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg
from steadygrad.nn.models import mlp
from studies.claim import Run, Study, Value, each, pick
from studies.common import CLASSES, digits
from studies.figure import BLUE, GREY, ORANGE, panels
from studies.training import digit_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, BATCH, LR, STEPS, EVERY = 4, 64, 64, 1e-3, 200, 10
EXPONENT = 30  # the highest bit of float32's exponent: a value below 2 becomes one of 1e38
JUMP = 2.0  # times the usual loss: then a step is taken again, where it is on alarm
LEAST, LOST = 1e-7, 10.0  # of the picture: no distance, and a loss that is not a number
FIRST = 55  # step of the first fault


class Faults:
    """Flips bits in the output of a linear layer, in the first computation of some steps.

    Args:
        bits: step -> the bit that is flipped in it, 0 the lowest of float32; EXPONENT is flipped in a whole row, as
            by a broken tile of the product, others in one number.
    """

    def __init__(self, model: nn.Module, bits: dict[int, int], whole_rows: bool, seed: int) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.bits, self.whole_rows, self.random = bits, whole_rows, Random(seed)
        for layer in self.layers:
            layer.register_forward_hook(self._flip)

    def begin(self, step: int) -> None:
        """A step begins: its fault, if it has one, will be in some layer."""
        self.bit, self.layer = self.bits.get(step), self.random.choice(self.layers)

    def _flip(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        if layer is not self.layer or self.bit is None:
            return
        rows = output.detach().view(torch.int32)
        row, column = (self.random.randrange(n) for n in rows.shape)
        rows[row, slice(None) if self.whole_rows else column] ^= 1 << self.bit
        self.bit = None


def measure(seed: int, smoke: bool, faults: str, again: str) -> Run:
    """A training with its planted faults beside the same without them: what was found, and what is left of them."""
    steps = 60 if smoke else STEPS
    planted = planned(faults, steps, seed)
    clean, weights, _ = train(seed, steps, {}, "none", "never")
    loss, corrupt, verdicts = train(seed, steps, planted, faults, again)
    told = [step for step, verdict in enumerate(verdicts) if verdict in ("fault", "nondeterministic")]
    return {
        "planted": float(len(planted)),
        "found": float(len(planted.keys() & set(told))),
        "told_wrongly": float(sum(step not in planted for step in told)),
        "other_weights": float(sum(a != b for a, b in zip(weights, corrupt, strict=True))),
        "final": loss[-1] / clean[-1],
        "loss": [float(f"{v:.7g}") for v in loss],
        "clean": [float(f"{v:.7g}") for v in clean],
    }


def planned(faults: str, steps: int, seed: int) -> dict[int, int]:
    """Step -> bit of each fault."""
    draw = Random(seed)
    places = range(FIRST, steps, EVERY)
    if faults == "row":
        return dict.fromkeys(places, EXPONENT)
    return {step: draw.randrange(32) for step in places} if faults == "bit" else {}


def train(
    seed: int, steps: int, planted: dict[int, int], kind: str, again: str
) -> tuple[list[float], list[float], list[str]]:
    """The losses, the last weights and what was said of each step. ``again``: when a step is taken again."""
    torch.manual_seed(seed)
    model = mlp(64, CLASSES, width=WIDTH, depth=DEPTH, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    faults = Faults(model, planted, kind == "row", seed)
    recompute = sg.Recompute(model, optimizer)
    losses: list[float] = []
    verdicts: list[str] = []
    for i, (x, y) in enumerate(digit_batches(digits(), BATCH, steps, seed)):
        faults.begin(i)

        def step(x: Tensor = x, y: Tensor = y) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        done = recompute(step, WHEN[again](losses))
        losses.append(done.value)
        verdicts.append(done.verdict)
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(), verdicts


def alarmed(before: Sequence[float]) -> Callable[[float], bool]:
    """Whether a loss is far above the last ones, or not a number."""
    usual = median(before[-20:]) if len(before) >= 20 else math.inf
    return lambda loss: not loss < JUMP * usual


WHEN: dict[str, Callable[[Sequence[float]], Callable[[float], bool] | None]] = {
    "always": lambda before: None,
    "on alarm": alarmed,
    "never": lambda before: lambda loss: False,
}


def draw(runs: Sequence[Run]) -> Figure:
    """How far the training is from the one without faults, by step."""
    figure, axes = panels(
        "A flipped bit ruins a run or bends it unseen; taking the step again undoes it", columns=2
    )
    title = {"row": "bit 30 of a whole row", "bit": "any one bit of one number"}
    for axis, (faults, again) in zip(axes, (("row", "on alarm"), ("bit", "always")), strict=True):
        for arm, colour, name in (
            ("never", ORANGE, "steps taken once"),
            (again, BLUE, f"steps taken again {again}"),
        ):
            for run in pick(runs, faults=faults, again=arm):
                off = [
                    abs(a - b) / b if math.isfinite(a) else LOST
                    for a, b in zip(run["loss"], run["clean"], strict=True)
                ]
                axis.plot(
                    [max(x, LEAST) for x in off],
                    "-",
                    color=colour,
                    alpha=0.8,
                    label=name if run["seed"] == 0 else None,
                )
        for step in range(FIRST, STEPS, EVERY):
            axis.axvline(step, color=GREY, linewidth=0.4, label="a fault" if step == FIRST else None)
        axis.set_yscale("log")
        axis.set_ylim(LEAST / 3, LOST * 3)
        axis.set_yticks([LEAST, 1e-5, 1e-3, 1e-1, LOST], ["0", "1e-5", "1e-3", "0.1", "NaN"])
        axis.minorticks_off()
        axis.set_xlabel(f"step; faults: {title[faults]}")
        axis.legend(frameon=False, fontsize=8, loc="center left")
    axes[0].set_ylabel("loss, distance from the run without faults")
    return figure


ARMS = [
    {"faults": "none", "again": "always"},
    {"faults": "bit", "again": "never"},
    {"faults": "bit", "again": "always"},
    {"faults": "row", "again": "never"},
    {"faults": "row", "again": "on alarm"},
]
STUDY = Study(
    name="silent_corruption",
    arms=ARMS,
    values=[
        Value(
            "bit 30 of a row flipped 15 times, step taken again on alarm: faults found",
            "found on detection",
            14,
            15,
            each("found", faults="row", again="on alarm"),
        ),
        Value(
            "... weights that are not those of the clean run, bit for bit",
            "0",
            0,
            0,
            each("other_weights", faults="row", again="on alarm"),
            needed=2,
        ),
        Value(
            "... last loss over that of the clean run",
            "1",
            0.95,
            1.05,
            each("final", faults="row", again="on alarm"),
        ),
        Value(
            "any bit of one number flipped 15 times, every step taken again: weights not those of the clean run",
            "0",
            0,
            0,
            each("other_weights", faults="bit", again="always"),
        ),
        Value(
            "... steps called faulty that were not",
            "0",
            0,
            0,
            each("told_wrongly", faults="bit", again="always"),
        ),
        Value(
            "no fault, every step taken again: steps called faulty",
            "0",
            0,
            0,
            each("told_wrongly", faults="none", again="always"),
        ),
        Value(
            "... weights not those of the clean run",
            "0",
            0,
            0,
            each("other_weights", faults="none", again="always"),
        ),
        Value(
            "row flipped, steps taken once: last loss over the clean one",
            "fails",
            0.95,
            1.05,
            each("final", faults="row", again="never"),
            1,
            True,
        ),
        Value(
            "any bit flipped, steps taken once: weights not those of the clean run",
            "fails",
            0,
            0,
            each("other_weights", faults="bit", again="never"),
            1,
            True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[ARMS[0], *ARMS[2:]],
)
