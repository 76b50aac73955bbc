"""Signals layer by layer, in the order of execution: what goes in, and the gradient that comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile, pairwise
from typing import Any

import torch
from torch import Tensor

from steadygrad.graph.numbers import numbers
from steadygrad.graph.walk import Graph, op, saved
from steadygrad.graph.weights import PRODUCTS, Use, between, leaf_behind
from steadygrad.records import NAN, LayerStats, RecurrenceStats

MIN_STEPS = 4  # uses of one weight, one on top of the other, that make a recurrence
MAX_LOOKS = 64  # uses of one weight that are looked at
ROWS = 256  # rows on which an output is computed again
UNDERFLOW = 1e-45
SQUARES = (1e-15, 1e18)  # norms whose squares float32 holds
POWER_STEPS = 30


class LayerReader:
    """Reads the layers of one graph: inputs at once, gradients while ``backward`` runs.

    A hook on each operation that uses a weight looks at the gradient of its output as it passes. It returns nothing,
    so that the gradient goes on as it is. Call :meth:`close` if :meth:`read` will not be called.

    Args:
        graph: of the loss, before ``backward``.
        uses: of its weights, from :func:`~steadygrad.graph.weights.find_uses`.

    Example:
        >>> from steadygrad.graph.weights import find_uses
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> loss = model(torch.ones(4, 3)).mean()
        >>> graph = Graph([loss])
        >>> reader = LayerReader(graph, find_uses(graph))
        >>> loss.backward()
        >>> layers, recurrences = reader.read({id(p): n for n, p in model.named_parameters()})
        >>> [(row.name, row.op, round(row.input_rms, 3)) for row in layers][:1], recurrences
        ([('0.weight', 'Addmm', 1.0)], ())
    """

    def __init__(self, graph: Graph, uses: Sequence[Use]) -> None:
        self._rows: dict[int, _Row] = {}
        self._hooks: list[Any] = []
        chains: dict[int, list[Use]] = {}
        for use in uses:
            chains.setdefault(id(use.weight), []).append(use)
        for key, chain in chains.items():
            self._rows[key] = row = _Row(chain, _repeats(graph, chain))
            for use in _spread(chain):
                self._hooks.append(use.node.register_prehook(_look(row, len(row.inputs))))
                row.add(use)
        if uses:
            self._rows[id(uses[-1].weight)].output = _output(graph, uses[-1])

    def read(self, names: Mapping[int, str]) -> tuple[tuple[LayerStats, ...], tuple[RecurrenceStats, ...]]:
        """The layers by their first use, and the recurrences among them. Call it after ``backward``, once.

        Args:
            names: name of each parameter, by its id. A weight that has none is left out.
        """
        rows = list(self._rows.values())
        self.close()
        layers, recurrences = [], []
        for row in rows:
            if id(row.weight) not in names:
                continue
            name = names[id(row.weight)]
            row.fetch()
            layers.append(row.stats(name))
            if row.chained:
                recurrences.append(row.recurrence(name))
        return tuple(layers), tuple(recurrences)

    def close(self) -> None:
        """Take the hooks away, from a graph that is still held by somebody, and let go of what was seen."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._rows = [], {}


class _Row:
    """What is known of one weight."""

    def __init__(self, chain: Sequence[Use], chained: bool) -> None:
        self.weight = chain[0].weight
        self.uses = len(chain)
        self.op = op(chain[0].node)
        self.dtype = str(Graph.dtype(chain[0].node)).removeprefix("torch.")
        self.chained = chained
        self.output: Tensor | None = None
        self.inputs: list[tuple[Tensor | None, Tensor | None]] = []  # rms and largest value of each
        self.grads: dict[int, Tensor] = {}
        self.rms: list[float] = []
        self.peaks: list[float] = []
        self.grad_rms: list[float] = []

    def add(self, use: Use) -> None:
        given = _input(use)
        known = given is not None and given.numel() > 0 and given.is_floating_point()
        self.inputs.append((_rms(given), _peak(given)) if known and given is not None else (None, None))

    def fetch(self) -> None:
        """Bring the numbers to the host, all at once."""
        n = len(self.inputs)
        grads = [self.grads.get(i) for i in range(n)]
        tensors = [*(x[0] for x in self.inputs), *(x[1] for x in self.inputs), *grads]
        values = numbers([*tensors, _spread_of_units(self.weight), self.output])
        self.rms, self.peaks, self.grad_rms = values[:n], values[n : 2 * n], values[2 * n : 3 * n]
        self.same_units, self.output_rms = values[-2] == 0, values[-1]

    def stats(self, name: str) -> LayerStats:
        return LayerStats(
            name=name,
            op=self.op,
            uses=self.uses,
            input_rms=next((x for x in self.rms if x > 0), self.rms[0]),  # a state begins at 0
            input_max=max((x for x in self.peaks if not math.isnan(x)), default=NAN),
            output_rms=self.output_rms,
            grad_rms=self.grad_rms[0],
            dtype=self.dtype,
            same_units=self.same_units,
        )

    def recurrence(self, name: str) -> RecurrenceStats:
        states = [x for x in self.rms if x != 0]
        last = [x for x in states[-max(1, len(states) // 4) :] if math.isfinite(x)]
        return RecurrenceStats(
            name=name,
            steps=self.uses,
            forward_decades=decades(states),
            backward_decades=decades(self.grad_rms[::-1]),
            state_rms=sum(last) / len(last) if last else NAN,
            gain=_largest_singular_value(self.weight),
        )


def _repeats(graph: Graph, chain: Sequence[Use]) -> bool:
    """Whether the uses work on one another. A layer used for many things side by side depends on itself nowhere."""
    if len(chain) < MIN_STEPS:
        return False
    ends = (chain[:2], chain[-2:])
    return all(between(graph, later.node, earlier.node) is not None for earlier, later in ends)


def _spread(chain: Sequence[Use]) -> Sequence[Use]:
    """All uses, or some that lie evenly between the first and the last."""
    if len(chain) <= MAX_LOOKS:
        return chain
    return [chain[round(i * (len(chain) - 1) / (MAX_LOOKS - 1))] for i in range(MAX_LOOKS)]


def _input(use: Use) -> Tensor | None:
    """What the layer was given: kept for the gradient of its weight."""
    for name in use.given:
        value = saved(use.node, name)
        if isinstance(value, Tensor):
            return value
    return None


@torch.no_grad()
def _output(graph: Graph, use: Use) -> Tensor | None:
    """RMS of what a matrix product put out, computed again on its first rows; None if both operands were not kept."""
    node, name = use.node, op(use.node)
    if name not in ("Mm", "Addmm"):
        return None
    first, second = (saved(node, kept) for _, kept in PRODUCTS[name])
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return None
    made = first[:ROWS] @ second
    if name == "Addmm":
        bias = leaf_behind(graph, graph.inputs(node)[0])
        if bias is None or bias.dim() != 1:
            return None
        made = made + bias.detach().to(made.dtype)
    return _rms(made)


def _look(row: _Row, index: int) -> Callable[[Sequence[Tensor | None]], None]:
    def look(grads: Sequence[Tensor | None]) -> None:
        grad = grads[0]
        if isinstance(grad, Tensor) and grad.numel() and grad.is_floating_point():
            try:
                row.grads[index] = _rms(grad)
            except (
                RuntimeError
            ):  # a kind of tensor without these operations: here it would end the user's backward
                row.grads.pop(index, None)

    return look


@torch.no_grad()
def _peak(x: Tensor) -> Tensor:
    least, largest = torch.aminmax(x.detach())
    return torch.maximum(-least, largest).float()


@torch.no_grad()
def _rms(x: Tensor) -> Tensor:
    x = x.detach().float()
    if x.is_cpu:
        norm = torch.linalg.vector_norm(x)
        if not SQUARES[0] < float(norm) < SQUARES[1]:
            norm = torch.linalg.vector_norm(x.double())
        return (norm * x.numel() ** -0.5).float()
    # Squares of float32 overflow from 1e19 on; a gradient of 1e25 is still a number.
    peak = _peak(x).clamp(1e-30, 3e38)
    return (x / peak).square().mean().sqrt() * peak


@torch.no_grad()
def _spread_of_units(weight: Tensor) -> Tensor | None:
    """0 where the rows of a weight are all the same: else how far apart the furthest are, or the first two."""
    if weight.shape[0] < 2 or not weight.is_floating_point() or weight.is_complex():
        return None
    rows = weight.detach().flatten(1)
    if rows.is_cpu:  # where nothing has to be waited for, two rows mostly tell
        apart = (rows[1] - rows[0]).abs().amax()
        if not apart == 0:
            return apart
    return (rows - rows[:1]).abs().amax()


def decades(series: Sequence[float]) -> float:
    """Growth from the first quarter of a series to its last, in powers of ten.

    Leading zeros are left out: nothing has arrived there yet. nan if there is nothing, inf where it overflows.

    Example:
        >>> round(decades([0.0, 1.0, 10.0, 100.0, 1000.0]), 2)
        3.0
    """
    logs = [math.log10(max(x, UNDERFLOW)) for x in dropwhile(lambda x: x == 0, series) if not math.isnan(x)]
    if not logs:
        return NAN
    quarter = max(1, len(logs) // 4)
    return sum(logs[-quarter:]) / quarter - sum(logs[:quarter]) / quarter


@torch.no_grad()
def _largest_singular_value(weight: Tensor) -> float:
    """Of the square blocks of a weight, by power iteration: at most a few percent too small."""
    if weight.dim() != 2 or not weight.shape[1] or weight.shape[0] % weight.shape[1]:
        return NAN
    blocks = weight.detach().float().reshape(-1, weight.shape[1], weight.shape[1])
    # A fixed start that has a part in every direction.
    v = (
        torch.arange(1.0, weight.shape[1] + 1, device=weight.device)
        .sin()
        .expand(len(blocks), -1)
        .unsqueeze(-1)
    )
    for _ in range(POWER_STEPS):
        v = blocks.mT @ (blocks @ (v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1e-30)))
    value = float(torch.linalg.vector_norm(v, dim=1).amax().sqrt())  # host sync
    return value if math.isfinite(value) else NAN


def backward_gains(layers: Sequence[LayerStats]) -> list[float]:
    """Factor by which the gradient grows from the output of each layer to that of the one before; nan for the first."""
    return [NAN][: len(layers)] + [
        a.grad_rms / b.grad_rms if b.grad_rms > 0 else NAN for a, b in pairwise(layers)
    ]


def forward_gains(layers: Sequence[LayerStats]) -> list[float]:
    """Factor by which each layer, with all up to the next one, makes its input larger."""
    gains = [b.input_rms / a.input_rms if a.input_rms > 0 else NAN for a, b in pairwise(layers)]
    if layers:
        last = layers[-1]
        gains.append(last.output_rms / last.input_rms if last.input_rms > 0 else NAN)
    return gains
