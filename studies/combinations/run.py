"""Methods against exploding gradients are not additive: some pairs help each other, some make each other needless."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, islice, product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler

from steadygrad.clip import clip_by_global_norm_
from steadygrad.init import initialise
from steadygrad.schedule import CurriculumSampler, competence_pacing
from studies.claim import Run, Study, Value
from studies.combinations.effects import Effects, effects_of
from studies.combinations.figure import draw as draw_effects
from studies.combinations.nets import NETS
from studies.common import CLASSES, batches, digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, SEEDS = 150, 32, (0, 1, 2)
CHANCE = math.log(CLASSES)
FACTORS = {  # name: (what is off or low, what is on or high)
    "clip": ("none", "global norm 1.0"),
    "init": ("torch's default", "initialise(auto)"),
    "norm": ("none", "LayerNorm before each block"),
    "residual": ("none", "skip around each block"),
    "optimizer": ("SGD with momentum 0.9", "AdamW"),
    "dropout": ("0", "0.1"),
    "curriculum": ("off", "easy digits first, over half of the run"),
    "lr": ("SGD 0.02, AdamW 1e-3", "ten times that"),
}


class Setting(NamedTuple):
    """One level for each factor."""

    clip: bool
    init: bool
    norm: bool
    residual: bool
    optimizer: bool
    dropout: bool
    curriculum: bool
    lr: bool


def design() -> Iterator[Setting]:
    """A quarter of the 256 settings: a 2^(8-2) design of resolution V.

    The curriculum is on where an even number of the first four is on, the LR high where an even number of clip, init,
    optimizer and dropout is. No main effect and no effect of a pair is mixed with another pair's.
    """
    for levels in product((False, True), repeat=6):
        clip, init, norm, residual, optimizer, dropout = levels
        yield Setting(
            *levels,
            curriculum=(clip + init + norm + residual) % 2 == 0,
            lr=(clip + init + optimizer + dropout) % 2 == 0,
        )


def measure(seed: int, smoke: bool, net: str, setting: dict[str, bool]) -> Run:
    """One run; the loss on the test digits at its end."""
    data, chosen = digits(), Setting(**setting)
    torch.manual_seed(seed)
    model = NETS[net](chosen.norm, chosen.residual, 0.1 * chosen.dropout)
    if chosen.init:
        initialise(model, data.x[:8])
    optimizer = _optimizer(model, chosen)
    params = list(model.parameters())
    losses: list[float] = []
    for index in islice(order(chosen.curriculum, seed), 4 if smoke else STEPS):
        loss = F.cross_entropy(model(data.x[index]), data.y[index])
        optimizer.zero_grad()
        loss.backward()
        if chosen.clip:
            clip_by_global_norm_([p.grad for p in params], max_norm=1.0)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    model.eval()
    with torch.no_grad():
        out = model(data.x_test)
    test = F.cross_entropy(out, data.y_test).item()
    return {
        "loss": test if math.isfinite(test) else None,
        "accuracy": (out.argmax(1) == data.y_test).float().mean().item(),
        "steps": len(losses),
    }


def _optimizer(model: nn.Module, chosen: Setting) -> torch.optim.Optimizer:
    faster = 10.0 if chosen.lr else 1.0
    if chosen.optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3 * faster)
    return torch.optim.SGD(model.parameters(), lr=0.02 * faster, momentum=0.9)


def order(curriculum: bool, seed: int) -> Iterator[Tensor]:
    """The batches of a run, as indices."""
    data = digits()
    if not curriculum:
        yield from islice(batches(len(data.y), BATCH, seed), STEPS)
        return
    centres = torch.stack([data.x[data.y == c].mean(0) for c in range(CLASSES)])
    sampler = CurriculumSampler(
        (data.x - centres[data.y]).norm(dim=1),  # how far a digit is from the mean of its class
        partial(competence_pacing, total_steps=STEPS // 2, start=0.1),
        samples_per_step=BATCH,
        num_samples=BATCH * STEPS,
        seed=seed,
    )
    for index in BatchSampler(sampler, BATCH, drop_last=True):
        yield torch.tensor(index)


def survived(result: dict[str, Any]) -> bool:
    """It ended with a loss a tenth below that of guessing."""
    return result["loss"] is not None and result["loss"] < 0.9 * CHANCE


def capped(result: dict[str, Any]) -> float:
    """The final loss; a run that blew up counts as twice the loss of guessing."""
    return 2 * CHANCE if result["loss"] is None else min(result["loss"], 2 * CHANCE)


def analysed(runs: Sequence[Run]) -> dict[str, dict[str, Effects]]:
    """Effects on survival (percentage points) and on the final loss, for each net."""
    found: dict[str, dict[str, Effects]] = {}
    for net in NETS:
        mine = [r for r in runs if r["net"] == net]
        settings = [[r["setting"][f] for f in FACTORS] for r in mine]
        found[net] = {
            "survival": effects_of(list(FACTORS), settings, [100.0 * survived(r) for r in mine]),
            "loss": effects_of(list(FACTORS), settings, [capped(r) for r in mine]),
        }
    return found


def table(runs: Sequence[Run], effects: dict[str, dict[str, Effects]]) -> str:
    """The result as Markdown."""
    lines = [
        "| net | runs | survived | median final loss of those | best setting that survived on every seed | its loss |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for net in NETS:
        mine = [r for r in runs if r["net"] == net]
        alive = sorted(r["loss"] for r in mine if survived(r))
        setting, loss = _best(mine)
        lines.append(
            f"| {net} | {len(mine)} | {100 * len(alive) / len(mine):.0f} % | {alive[len(alive) // 2]:.3f} "
            f"| {' + '.join(f for f in FACTORS if setting[f]) or 'nothing'} | {loss:.3f} |"
        )
    for answer, unit in (("survival", "percentage points"), ("loss", "nats")):
        lines += ["", f"Main effects on {answer} ({unit}; bold: beyond 3.5 standard errors):", ""]
        lines += ["| net | " + " | ".join(FACTORS) + " |", "|---" * (len(FACTORS) + 1) + "|"]
        digits_ = 0 if answer == "survival" else 2
        for net in NETS:
            cells = [effects[net][answer][(f,)] for f in FACTORS]
            shown = [f"**{e.size:+.{digits_}f}**" if e.clear else f"{e.size:+.{digits_}f}" for e in cells]
            lines.append(f"| {net} | " + " | ".join(shown) + " |")
    lines += [
        "",
        "Pairs whose effect on survival is clear (points; + they help each other, - one makes the other needless):",
    ]
    lines += [
        "",
        "| net | pair | effect | neither | first only | second only | both |",
        "|---|---|---|---|---|---|---|",
    ]
    for net in NETS:
        mine = [r for r in runs if r["net"] == net]
        pairs = [effects[net]["survival"][pair] for pair in combinations(FACTORS, 2)]
        for effect in sorted((e for e in pairs if e.clear), key=lambda e: -abs(e.size)):
            neither, second, first, both = (
                _rate(mine, effect.factors, on) for on in product((False, True), repeat=2)
            )
            rates = " | ".join(f"{rate:.0f} %" for rate in (neither, first, second, both))
            lines.append(f"| {net} | {' x '.join(effect.factors)} | {effect.size:+.0f} | {rates} |")
    return "\n".join(lines)


def _rate(runs: Sequence[Run], factors: tuple[str, ...], on: tuple[bool, ...]) -> float:
    chosen = [
        survived(r) for r in runs if all(r["setting"][f] == o for f, o in zip(factors, on, strict=True))
    ]
    return 100 * sum(chosen) / len(chosen)


def _best(runs: Sequence[Run]) -> tuple[dict[str, bool], float]:
    same: dict[tuple[bool, ...], list[dict[str, Any]]] = {}
    for r in runs:
        same.setdefault(tuple(r["setting"].values()), []).append(r)
    safe = [rs for rs in same.values() if all(survived(r) for r in rs)]
    best = min(safe, key=lambda rs: sum(r["loss"] for r in rs))
    return best[0]["setting"], sum(r["loss"] for r in best) / len(best)


def draw(runs: Sequence[Run]) -> Figure:
    """The effects on survival."""
    return draw_effects({net: found["survival"] for net, found in analysed(runs).items()}, list(FACTORS))


def points(net: str, *factors: str) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: the effect of a factor or of a pair on survival, in percentage points."""
    return lambda runs: [analysed(runs)[net]["survival"][factors].size]


STUDY = Study(
    name="combinations",
    arms=[{"net": net, "setting": setting._asdict()} for net in NETS for setting in design()],
    values=[
        Value("points of survival by skips, MLP", "helps", 20, 100, points("MLP", "residual")),
        Value("points of survival by clipping, Transformer", "helps", 10, 100, points("Transformer", "clip")),
        Value(
            "norm x residual, Transformer",
            "help each other",
            5,
            100,
            points("Transformer", "norm", "residual"),
        ),
        Value(
            "clip x optimizer, MLP",
            "one makes the other needless",
            -100,
            -5,
            points("MLP", "clip", "optimizer"),
        ),
    ],
    measure=measure,
    draw=draw,
    seeds=SEEDS,
    smoke_arms=[{"net": net, "setting": next(design())._asdict()} for net in NETS],
    image="combinations.png",
    settings={"factors": FACTORS, "steps": STEPS, "batch": BATCH},
)
