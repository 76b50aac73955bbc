"""Binary cross entropies: torch's own, and y log p + (1 - y) log(1 - p) written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from steadygrad.graph._head import RESHAPES, Arrival
from steadygrad.graph._terms import RawTerm, as_columns, spread, wide
from steadygrad.graph.walk import Node, op, saved

FUSED = {"BinaryCrossEntropy": "bce", "BinaryCrossEntropyWithLogits": "bce_logits"}
PADDING = ("Add", "Sub", "Clamp", "ClampMin", "ClampMax", "Rsub")  # what keeps a log away from 0, and 1 - p


def binary_base(node: Node) -> tuple[Node, bool] | None:
    """The node whose probability p is behind a log p or a log(1 - p), and whether it is the latter."""
    if op(node) == "LogSigmoid":
        inner = node.next_functions[0][0]
        return (inner.next_functions[0][0], True) if op(inner) == "Neg" else (inner, False)
    if op(node) != "Log":
        return None
    inner, complement = node.next_functions[0][0], False
    for _ in range(6):
        if inner is None or op(inner) == "Sigmoid":
            break
        if op(inner) not in PADDING and op(inner) not in RESHAPES:
            return None
        parents = [parent for parent, _ in inner.next_functions if parent is not None]
        if len(parents) != 1:
            return None
        complement ^= op(inner) == "Rsub" or (op(inner) == "Sub" and inner.next_functions[0][0] is None)
        inner = parents[0]
    return (inner, complement) if inner is not None and op(inner) == "Sigmoid" else None


def read_fused(arrival: Arrival) -> RawTerm | None:
    """The term of a torch function; None where what it kept cannot be read."""
    node = arrival.node
    prediction, target, factor = saved(node, "self"), saved(node, "target"), saved(node, "weight")
    if prediction is None or target is None:
        return None
    shape = tuple(prediction.shape)
    prediction, target = wide(prediction), wide(target)
    reduction = int(saved(node, "reduction"))
    weight = spread(arrival.gradient, shape, reduction)
    if factor is not None:
        weight = (weight * wide(factor)).expand(shape)
    with torch.no_grad():
        if op(node) == "BinaryCrossEntropy":
            pos_weight = None
            loss = F.binary_cross_entropy(prediction.clamp(0, 1), target.clamp(0, 1), reduction="none")
        else:
            pos_weight = saved(node, "pos_weight")
            loss = F.binary_cross_entropy_with_logits(
                prediction, target, reduction="none", pos_weight=pos_weight
            )
    return RawTerm(
        FUSED[op(node)],
        node,
        shape,
        loss,
        weight,
        arrival.way,
        as_columns(target),
        as_columns(weight),
        prediction,
        node.next_functions[0][0],
        pos_weight=None if pos_weight is None else _per_column(pos_weight, shape),
        reduction=reduction,
        moves=len(node.next_functions) > 1 and node.next_functions[1][0] is not None,
    )


def read_by_hand(base: Node, parts: Sequence[tuple[Arrival, bool]]) -> RawTerm | None:
    """The term of all logs of p and of 1 - p over one prediction."""
    shape = tuple(base._input_metadata[0].shape)
    positive: Tensor | float = 0.0
    negative: Tensor | float = 0.0
    total: Tensor | float = 0.0
    for arrival, complement in parts:
        log = _log(arrival.node)
        if log is None or arrival.gradient.numel() != log.numel():
            return None
        part = -arrival.gradient.float().reshape(shape)
        total = total - part * log.reshape(shape)
        if complement:
            negative = negative + part
        else:
            positive = positive + part
    weight = torch.as_tensor(positive + negative)
    total = torch.as_tensor(total)
    known = weight != 0
    one = torch.ones_like(weight)
    safe = torch.where(known, weight, one)
    target = positive / safe * one
    result = saved(base, "result") if op(base) == "Sigmoid" else None
    first = parts[0][0]
    return RawTerm(
        "bce",
        first.node,
        shape,
        total / safe,
        weight,
        first.way,
        as_columns(target),
        as_columns(weight),
        None if result is None else wide(result),
        base,
        paired=shape[0] if any(part.way.table for part, _ in parts) else 0,
    )


def _log(node: Node) -> Tensor | None:
    value = saved(node, "self")
    if value is None:
        return None
    return wide(value).log() if op(node) == "Log" else F.logsigmoid(wide(value))


def _per_column(pos_weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A positive weight per column; the mean weight where it differs within one."""
    return as_columns(wide(pos_weight).expand(shape)).mean(0)
