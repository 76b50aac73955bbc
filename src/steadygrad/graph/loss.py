"""The terms of a loss, read from its graph: what is compared with what, by which measure, and with which weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from steadygrad.graph import _binary, _classes, _regression
from steadygrad.graph._head import Arrival, arrivals
from steadygrad.graph._measure import measure, to_host
from steadygrad.graph._moves import moves_with
from steadygrad.graph._terms import RawTerm
from steadygrad.graph._values import Values, bounded
from steadygrad.graph.targets import Targets, trivial
from steadygrad.graph.walk import Graph, Node, op
from steadygrad.records import NAN, LossTerm

SAME = 1e-3  # weights that differ by less are one weight
FEW = 4  # rows; fewer do not tell a class weight from a signal
FOREIGN = "nll"  # an nll_loss of something that is no log-probability


@dataclass(frozen=True)
class SeenTerm:
    """A term with what it is judged by. Its nodes keep the graph alive: hold it no longer than the step."""

    term: LossTerm
    targets: Targets | None  # None where they could not be read
    node: Node  # of its first part
    maker: Node | None  # whose values are the prediction; of a cross entropy, its logits
    shape: tuple[int, ...]  # of the prediction
    constant: float | None = None  # the one value or class that all targets have
    paired: int = 0  # so many predictions were each broadcast against as many targets


@torch.no_grad()
def read_loss(
    graph: Graph,
    roots: Sequence[Tensor],
    outputs: Sequence[Tensor] = (),
    outputs_without_grad: Sequence[Tensor] = (),
) -> tuple[SeenTerm, ...]:
    """The terms of a loss with their targets.

    Recognised are the losses of torch and what is the same written by hand: cross entropy with class indices,
    distributions or label smoothing, binary cross entropy, squared, absolute, Huber and smooth L1 differences, norms
    and roots of them, divergence from fixed distributions, CTC. Weights that a script multiplies in, masks and
    reductions are followed exactly. ``sum(value * weight)`` is the part of the loss that the terms explain, but for a
    root or a norm of a squared difference: there the weight is the derivative, and explains half.

    Not taken for a term: a difference of two values that both have a history, products of two such values (focal
    loss, ratios), weights of both signs, and log-probabilities of actions weighted by a signal (policy gradients).

    Args:
        graph: of these roots; used by nothing else while it is read.
        roots: what ``backward`` is called on; with a loss scale, weights are times that scale.
        outputs: outputs of modules of this step, to find predictions by that a hand-written loss did not keep.
        outputs_without_grad: what modules put out under ``no_grad`` in this step, to tell targets that move.

    Changes nothing, draws no random number; copies to the host once per device, and once more where the terms of
    one shape have different weights.

    Example:
        >>> w = torch.zeros(3, 2, requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(torch.ones(4, 3) @ w, torch.tensor([0, 0, 0, 1]))
        >>> term = read_loss(Graph([loss]), [loss])[0].term
        >>> term.kind, round(term.value, 3), round(term.trivial, 3), term.weight
        ('cross_entropy', 0.693, 0.562, 1.0)
    """
    values = Values(outputs)
    raw = _raw_terms(arrivals(roots, _is_term), values)
    seen: list[SeenTerm] = []
    groups = list(_grouped(raw).values())
    for group, found in zip(groups, to_host([measure(group) for group in groups]), strict=True):
        for part, numbers in _same_weights(group, found):
            if (term := _seen(part, numbers)) is not None:
                seen.append(_with_moves(term, part, outputs_without_grad))
    return tuple(seen)


def _is_term(node: Node) -> bool:
    name = op(node)
    return (
        name in _classes.NLL
        or name in _binary.FUSED
        or name == "CtcLoss"
        or _regression.is_regression(node)
        or _classes.class_base(node) is not None
        or _binary.binary_base(node) is not None
    )


def _raw_terms(found: Sequence[Arrival], values: Values) -> list[RawTerm]:
    """One term per loss node; one for all log-probabilities of the same logits, or of the same probability."""
    classes: dict[object, list[tuple[Arrival, Node]]] = {}
    binary: dict[object, list[tuple[Arrival, bool, Node]]] = {}
    slots: list[tuple[Arrival, object]] = []
    for arrival in found:
        key: object = None
        if (pair := _binary.binary_base(arrival.node)) is not None:
            key = pair[0]
            binary.setdefault(key, []).append((arrival, pair[1], pair[0]))
        elif (base := _classes.class_base_of(arrival.node)) is not None:
            key = (base.next_functions[0], _classes.class_axis(base), arrival.way.offset)
            classes.setdefault(key, []).append((arrival, base))
        slots.append((arrival, key))
    raw: list[RawTerm | None] = []
    for arrival, key in slots:
        if key in binary:
            parts = binary.pop(key)
            raw.append(
                _binary.read_by_hand(parts[0][2], [(part, complement) for part, complement, _ in parts])
            )
        elif key in classes:
            raw += _class_terms(classes.pop(key))
        elif key is None:
            raw.append(_single(arrival, values))
    return [term for term in raw if term is not None and term.loss.numel() > 0]


def _class_terms(parts: list[tuple[Arrival, Node]]) -> list[RawTerm | None]:
    """Class indices alone need no dense copy; mixed with others (label smoothing, two labels) they do."""
    indices = [part for part, _ in parts if op(part.node) in _classes.NLL]
    if len(parts) > 1 or not indices:
        term = _classes.read_dense(parts)
        if term is not None or not indices:
            return [term]
    return [_classes.read_indices(part) for part in indices]


def _single(arrival: Arrival, values: Values) -> RawTerm | None:
    name = op(arrival.node)
    if name in _classes.NLL:
        return _classes.read_indices(arrival)
    if name in _binary.FUSED:
        return _binary.read_fused(arrival)
    if name == "CtcLoss":
        return _classes.read_ctc(arrival)
    return _regression.read_regression(arrival, values)


def _grouped(raw: Sequence[RawTerm]) -> dict[object, list[RawTerm]]:
    """Terms that may be parts of one: the steps of a sequence, the halves of a batch."""
    groups: dict[object, list[RawTerm]] = {}
    for term in raw:
        key = (
            (
                term.kind,
                term.shape,
                term.classes,
                term.knee,
                term.reduction,
                term.way,
                term.moves,
                term.paired,
            )
            + (bounded(term.maker), term.indices, term.target is None, term.prediction is None)
            + (term.pos_weight is None, term.normalised is None)
        )
        groups.setdefault(key, []).append(term)
    return groups


def _same_weights(
    group: list[RawTerm], found: dict[str, np.ndarray]
) -> list[tuple[list[RawTerm], dict[str, np.ndarray]]]:
    """The group, in as many parts as its terms have weights. None if each term has its own: that is a signal."""
    weights = found["parts"]
    largest = np.abs(weights).max()
    if len(group) == 1 or not np.ptp(weights) > SAME * largest:
        return [(group, found)]
    rounded = np.round(weights / (SAME * largest))
    levels = list(dict.fromkeys(rounded.tolist()))
    if len(levels) >= FEW and len(levels) > len(group) / 2 and group[0].way.factor:
        return []
    parts = [[term for term, at in zip(group, rounded, strict=True) if at == level] for level in levels]
    return list(zip(parts, to_host([measure(part) for part in parts]), strict=True))


def _seen(group: list[RawTerm], found: Mapping[str, np.ndarray]) -> SeenTerm | None:
    """The record of a group; None where its weights are those of no loss."""
    first = group[0]
    numbers = {name: float(v) for name, v in found.items() if v.ndim == 0}
    elements, total = int(numbers["elements"]), numbers["total"]
    if elements == 0 or numbers["negative"] or _is_signal(first, numbers):
        return None
    if first.classes and math.isnan(total) and not first.indices:
        return None
    value, weight = numbers["loss"] / total if total else NAN, total
    if first.way.rooted:
        value = numbers["plain"]
        weight = numbers["loss"] / value if value else NAN
    foreign = first.normalised is not None and not numbers["normalised"]
    targets = None if first.target is None or foreign else _targets(group, found)
    output = bounded(first.maker)[0]
    term = LossTerm(
        kind=FOREIGN if foreign else first.kind,
        value=value,
        trivial=NAN if targets is None else trivial(targets),
        weight=weight,
        reduction=_reduction(group, numbers),
        elements=elements,
        prediction_rms=math.sqrt(numbers.get("prediction", NAN)),
        target_rms=NAN if targets is None else math.sqrt(targets.mean_square),
        target_mean=NAN if targets is None else targets.average,
        target_std=NAN if targets is None else targets.std,
        classes=first.classes,
        repeats=len(group),
        output=output,
        out_of_range=numbers.get("outside", 0.0),
        target_moves=first.moves,
    )
    return SeenTerm(
        term, targets, first.node, first.maker, first.shape, _constant(first, found), first.paired
    )


def _is_signal(first: RawTerm, numbers: Mapping[str, float]) -> bool:
    """Whether log-probabilities are weighted by row, and by more than their class: the returns of a policy gradient.

    A few distinct weights are taken for those of a loss (sequences of different lengths, two domains).
    """
    if "within" not in numbers or not numbers["hard"]:
        return False
    rows = numbers["elements"]
    if rows < FEW:
        return first.target is not None and first.target.ndim == 1
    if numbers["within"] <= (SAME**2) * rows:
        return numbers["distinct"] > 1 and numbers["occurring"] * 2 > rows
    return numbers["distinct"] > 1 + rows / 8


def _targets(group: list[RawTerm], found: Mapping[str, np.ndarray]) -> Targets:
    first = group[0]
    none = np.zeros(0)
    return Targets(
        kind=first.kind,
        shape=first.shape[1:],
        rows=float(found["elements"]) / first.columns,
        counts=found.get("counts", none),
        entropy=float(found.get("entropy", np.zeros(()))),
        weight=found.get("weight", none),
        mean=found.get("mean", none),
        squares=found.get("squares", none),
        values=found.get("values", none),
        seen=len(found.get("values", none)),
        knee=first.knee,
        pos_weight=found.get("pos_weight", none),
    )


def _constant(first: RawTerm, found: Mapping[str, np.ndarray]) -> float | None:
    if "low" in found:
        return float(found["low"]) if found["low"] == found["high"] else None
    if first.indices and "counts" in found and np.count_nonzero(found["counts"]) == 1:
        return float(np.flatnonzero(found["counts"])[0])
    return None


def _reduction(group: list[RawTerm], numbers: Mapping[str, float]) -> str:
    """Over the batch: "sum" where the weight of the mean grows with the rows, whatever divided it since."""
    first = group[0]
    if first.reduction == 1 or first.way.means:
        return "mean"
    if first.reduction != 2 and not first.way.sums:
        return "none"
    rows, each = numbers["elements"] / first.columns / len(group), abs(numbers["total"]) / len(group)
    divided = rows > 1 and any(abs(each - level) <= 0.01 * level for level in (1.0, first.columns))
    return "mean" if divided else "sum"


def _with_moves(seen: SeenTerm, group: Sequence[RawTerm], outputs: Sequence[Tensor]) -> SeenTerm:
    if seen.term.target_moves or not outputs or seen.targets is None or group[0].classes:
        return seen
    if any(
        moves_with(term.target, output) for term in group if term.target is not None for output in outputs
    ):
        return replace(seen, term=replace(seen.term, target_moves=True))
    return seen
