"""A histogram of exponents tells what a cast will overflow and flush to zero, and which scale saves it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.precision import FORMATS, ExponentHistogram, TensorHeadroom, emulated_cast, headroom
from studies.claim import Run, Study, Value, each, pick
from studies.figure import BLUE, ORANGE, panels
from studies.steady_optimizer.nets import NETS, feed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TENSORS, STEPS, LEAST = 20, 40, 10
AWAY = range(-2, 21, 2)  # doublings by which the largest number of a tensor lies beyond an end of a format


def measure(seed: int, smoke: bool, net: str, trained: bool) -> Run:
    """The largest tensors of a net: what the forecast says of casts, and what the casts do."""
    model = NETS[net]()
    batches = feed(net, STEPS + 1, seed)
    for x, y in islice(batches, STEPS if trained else 0):
        train(model, x, y)
    batch = next(batches)
    forecast = headroom(model, F.cross_entropy, batch)
    kept = tensors(model, *batch)
    rows = sorted(forecast.rows, key=lambda row: -row.histogram.numel)[: 4 if smoke else TENSORS]
    points = [p for row in rows for p in compared(row.histogram, kept[row.name])]
    mixed = [
        p
        for row, other in zip(rows, rows[1:], strict=False)
        for p in compared(other.histogram, kept[row.name])
    ]
    return {
        "tensors": len(rows),
        "error": worst(points),
        "mixed": worst(mixed),
        "overflow": sum(overflow_with_scale(row, kept[row.name]) for row in rows),
        "points": points[:: max(1, len(points) // 60)],
    }


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A step of gradient descent."""
    loss = F.cross_entropy(model(x), y)
    params = list(model.parameters())
    with torch.no_grad():
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.sub_(0.1 * g)


def tensors(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The weights, inputs and gradients that the forecast counts, whole, by its names for them."""
    kept = {name: p.detach() for name, p in model.named_parameters()}

    def keep(name: str, tensor: Tensor) -> None:
        kept[name] = tensor.detach().clone()

    def look(
        name: str, module: nn.Module, given: tuple[Tensor, ...], made: Tensor | tuple[Tensor, ...]
    ) -> None:
        keep(f"input of {name}", given[0])
        output = made if isinstance(made, Tensor) else made[0]
        output.register_hook(partial(keep, f"gradient at {name}"))

    handles = [
        m.register_forward_hook(partial(look, name)) for name, m in model.named_modules() if has_matrix(m)
    ]
    loss = F.cross_entropy(model(x), y)
    for handle in handles:
        handle.remove()
    loss.backward()
    return kept | {
        f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def has_matrix(module: nn.Module) -> bool:
    """Whether a layer holds a weight of two dimensions or more itself."""
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def compared(histogram: ExponentHistogram, x: Tensor) -> list[tuple[float, int]]:
    """Forecast and count of what overflows and of what flushes to zero, in every format at scales around its ends."""
    top = max(histogram.exponents)
    pairs: list[tuple[float, int]] = []
    for to in FORMATS.values():
        for beyond in AWAY:
            shift = to.max_exponent - top + beyond // 4
            over = int(emulated_cast(x, to, 2.0**shift).isinf().sum())
            pairs.append((histogram.cast(to, shift).overflow, over))
            shift = to.flush_exponent - top + beyond
            flushed = int(((emulated_cast(x, to, 2.0**shift) == 0) & (x != 0)).sum())
            pairs.append((histogram.cast(to, shift).flushed, flushed))
    return [(said, counted) for said, counted in pairs if counted >= LEAST]


def overflow_with_scale(row: TensorHeadroom, x: Tensor) -> int:
    """Numbers that overflow although the tensor has the scale that the forecast wants for it, over all formats."""
    return sum(int(emulated_cast(x, to, row.scale(name)).isinf().sum()) for name, to in FORMATS.items())


def worst(pairs: Sequence[tuple[float, int]]) -> float:
    """The largest error of a forecast count, as a share of the count."""
    return max(abs(said - counted) / counted for said, counted in pairs)


def draw(runs: Sequence[Run]) -> Figure:
    """Forecast against count."""
    figure, axes = panels("What low precision would lose, forecast from exponents", columns=2)
    for axis, trained in zip(axes, (False, True), strict=True):
        for net, colour in zip(ARMS, (BLUE, ORANGE), strict=True):
            points = [p for run in pick(runs, net=net, trained=trained) for p in run["points"]]
            axis.plot(
                [counted for _, counted in points],
                [said for said, _ in points],
                "o",
                color=colour,
                label=net,
                alpha=0.5,
            )
        ends = (LEAST, 1e5)
        axis.plot(ends, ends, color="black", linewidth=1)
        axis.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="black", alpha=0.15)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"after {STEPS} steps" if trained else "before training", fontsize=10)
        axis.set_xlabel("numbers lost in the cast itself")
    axes[0].set_ylabel("numbers lost, forecast (band: 10 %)")
    axes[0].legend(frameon=False)
    return figure


ARMS = ("Transformer", "CNN")
STUDY = Study(
    name="precision_headroom",
    arms=[{"net": net, "trained": trained} for net in ARMS for trained in (False, True)],
    values=[
        *(
            Value(
                f"largest error of a count, {net}, {'trained' if trained else 'at the start'}",
                "at most 10 %",
                0,
                0.1,
                each("error", net=net, trained=trained),
            )
            for net in ARMS
            for trained in (False, True)
        ),
        Value(
            "numbers that overflow with the wanted scale",
            "0",
            0,
            0,
            lambda runs: [r["overflow"] for r in runs],
        ),
        Value(
            "largest error with the histogram of another tensor",
            "far off",
            0,
            0.1,
            lambda runs: [r["mixed"] for r in runs],
            needed=1,
            control=True,
        ),
    ],
    measure=measure,
    draw=draw,
    smoke_arms=[{"net": "CNN", "trained": False}],
)
