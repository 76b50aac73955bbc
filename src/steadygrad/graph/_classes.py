"""Cross entropies over classes: anything that is linear in log-probabilities, with the weights of a distribution.

A loss of class indices, a gather, an index, a product with one-hot or soft targets, label smoothing, and a divergence
from fixed targets are one thing to the log-probabilities: each gets a weight. Where none of the weights speaks against
a class, each row of them is a target distribution times the weight of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from steadygrad.graph._head import MAX_ELEMENTS, PICKS, RESHAPES, Arrival, Way, pull, shape_of, signed
from steadygrad.graph._terms import RawTerm, wide
from steadygrad.graph.walk import Node, op, saved

NLL = ("NllLoss", "NllLoss2D", "NllLossNd")
PADDING = ("Add", "Clamp", "ClampMin", "ClampMax")  # what keeps a log away from 0
MAX_ROWS = 256  # rows of logits that are looked at


def class_base(node: Node | None) -> Node | None:
    """The node that normalises over classes behind a log-probability: a softmax, x - logsumexp(x), or p / sum(p)."""
    name = "" if node is None else op(node)
    if node is None or name == "LogSoftmax":
        return node
    if name == "Sub" and len(node.next_functions) == 2:
        logits, norm = node.next_functions
        same = norm[0] is not None and op(norm[0]) == "Logsumexp" and norm[0].next_functions[0] == logits
        return node if same else None
    if name != "Log":
        return None
    inner = node.next_functions[0][0]
    for _ in range(6):
        if inner is None or op(inner) == "Softmax":
            return inner
        if _renormalises(inner):
            given = inner.next_functions[0][0]
            return given if op(given) == "Softmax" else inner
        if op(inner) not in PADDING and op(inner) not in RESHAPES and op(inner) not in PICKS:
            return None
        parents = [parent for parent, _ in inner.next_functions if parent is not None]
        inner = parents[0] if len(parents) == 1 else None
    return None


def _renormalises(node: Node) -> bool:
    """Whether a node is p / p.sum(axis): a distribution, of whatever p; nothing for the p of a softmax."""
    if op(node) != "Div" or len(node.next_functions) != 2:
        return False
    shares, total = node.next_functions
    if total[0] is None or op(total[0]) != "Sum" or total[0].next_functions[0] != shares:
        return False
    return len(saved(total[0], "dim") or ()) == 1


def nll_base(node: Node) -> Node | None:
    """The same for the input of a torch ``nll_loss``, behind reshapings; None for anything else."""
    inner = node.next_functions[0][0]
    while inner is not None and op(inner) in (*RESHAPES, "Transpose", "Permute"):
        inner = inner.next_functions[0][0]
    return class_base(inner)


def class_base_of(node: Node) -> Node | None:
    """The base behind a term's node, whichever of the two it is."""
    return nll_base(node) if op(node) in NLL else class_base(node)


def class_axis(base: Node) -> int:
    """Axis of the classes in what the base made."""
    if op(base) in ("Sub", "Div"):
        axis = saved(base.next_functions[1][0], "dim")[0]
    else:
        axis = saved(base, "dim")
    return signed(axis) % max(len(shape_of(base)), 1)


def read_indices(arrival: Arrival) -> RawTerm | None:
    """The term of a torch ``nll_loss`` (or ``cross_entropy`` with class indices), without a dense copy."""
    node = arrival.node
    scores, target = saved(node, "self"), saved(node, "target")
    if scores is None or target is None:
        return None
    axis = 0 if scores.ndim == 1 else 1
    classes = scores.shape[axis]
    counted = target != signed(saved(node, "ignore_index"))
    index = torch.where(counted, target, torch.zeros_like(target))
    loss = -wide(scores.gather(axis, index.unsqueeze(axis)).squeeze(axis))
    factor = saved(node, "weight")
    weight = torch.ones_like(loss) if factor is None else wide(factor)[index]
    gradient, reduction = arrival.gradient.float(), int(saved(node, "reduction"))
    if reduction == 1:
        gradient = gradient / saved(node, "total_weight")
    weight = torch.where(counted, weight * gradient, torch.zeros_like(weight))
    base = nll_base(node)
    return RawTerm(
        "cross_entropy",
        node,
        tuple(scores.shape),
        loss.reshape(-1),
        weight.reshape(-1),
        arrival.way,
        index.reshape(-1),
        None,
        _logits(base, scores, axis),
        None if base is None else base.next_functions[0][0],
        classes=classes,
        reduction=reduction,
        normalised=None if base is not None else _sums_to_one(scores, axis),
    )


def read_dense(parts: Sequence[tuple[Arrival, Node]]) -> RawTerm | None:
    """The term of all that reaches the log-probabilities of the same logits, as target distributions.

    Each part comes with its base; their shapes and class axes are the same.
    """
    base = parts[0][1]
    shape = shape_of(base)
    if prod(shape) > MAX_ELEMENTS or not shape:
        return None
    log: Tensor | None = None
    weight: Tensor | float = 0.0
    total: Tensor | float = 0.0
    way = Way()
    for part, own in parts:
        log = _log_probabilities(own)
        pulled = _pulled(part, own, log)
        if pulled is None:
            return None
        weight, total, way = weight - pulled[0].float(), total + pulled[1].float(), way | part.way
    assert isinstance(weight, Tensor) and isinstance(total, Tensor)
    axis = class_axis(base)
    classes = shape[axis]
    rows = weight.movedim(axis, -1).reshape(-1, classes)
    row_weight = rows.sum(1)
    safe = torch.where(row_weight == 0, torch.ones_like(row_weight), row_weight)
    distribution = rows / safe.unsqueeze(1)
    loss = total.movedim(axis, -1).reshape(-1, classes).sum(1) / safe
    kind = "cross_entropy"
    if way.offset:
        kind = "kl_div"
        loss = loss + torch.special.xlogy(distribution, distribution).sum(1)
    # a weight against a class makes the whole row no target: told by a weight of nan
    against = (rows < 0).any(1)
    return RawTerm(
        kind,
        parts[0][0].node,
        shape,
        loss,
        torch.where(against, torch.full_like(row_weight, torch.nan), row_weight),
        way,
        distribution,
        None,
        _logits(base, log, axis) if log is not None else None,
        _scores(base),
        classes=classes,
    )


def read_ctc(arrival: Arrival) -> RawTerm | None:
    """A connectionist temporal classification: a value without a yardstick."""
    loss, log = saved(arrival.node, "result0"), saved(arrival.node, "log_probs")
    if loss is None or log is None:
        return None
    return RawTerm(
        "ctc",
        arrival.node,
        tuple(log.shape),
        wide(loss).reshape(-1),
        arrival.gradient.float().reshape(-1),
        arrival.way,
        classes=log.shape[-1],
    )


def _scores(base: Node) -> Node | None:
    """The node that a normalisation over classes is given; for p / sum(p), what p was made from."""
    given = base.next_functions[0][0]
    if op(base) == "Div" and given is not None and given.next_functions:
        given = given.next_functions[0][0]
    return given  # type: ignore[no-any-return]


def _log_probabilities(base: Node) -> Tensor | None:
    """Log-probabilities of a base in its own shape; None for a Softmax, whose log the script takes itself."""
    if op(base) == "LogSoftmax":
        return wide(result) if (result := saved(base, "result")) is not None else None
    if op(base) == "Sub":
        norm = base.next_functions[1][0]
        logits, total = saved(norm, "self"), saved(norm, "result")
        if logits is None or total is None:
            return None
        total = total if total.ndim == logits.ndim else total.unsqueeze(class_axis(base))
        return wide(logits) - wide(total)
    return None


def _pulled(part: Arrival, base: Node, log: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Weight of each log-probability of the base, and what it adds to the loss."""
    node = part.node
    if node is base:
        return None if log is None else (part.gradient, part.gradient * log)
    if op(node) in NLL:
        gradient = _down(node, base, [part.gradient])
        return None if log is None or gradient is None else (gradient[0], gradient[0] * log)
    value = saved(node, "self")
    if value is None:
        return None
    inner = node.next_functions[0][0]
    pair = _down(inner, base, [part.gradient, part.gradient * wide(value).log()])
    return None if pair is None else (pair[0], pair[1])


def _down(node: Node, base: Node, tensors: list[Tensor]) -> list[Tensor] | None:
    """Tensors in the shape of a node's result, carried along a chain of pickings and reshapings to its base."""
    while node is not base:
        at = next((i for i, (parent, _) in enumerate(node.next_functions) if parent is not None), None)
        if at is None:
            return None
        if op(node) not in PADDING and not _renormalises(node):
            pulled = [pull(node, [tensor]) for tensor in tensors]
            if any(len(each) <= at or each[at] is None for each in pulled):
                return None
            tensors = [each[at] for each in pulled]  # type: ignore[misc]
        node = node.next_functions[at][0]
    return tensors


def _logits(base: Node | None, scores: Tensor, axis: int) -> Tensor:
    """Some rows of the logits, each centred: what a cross entropy can know of them."""
    rows = _some_rows(scores, axis)
    return rows if base is None else rows - rows.mean(1, keepdim=True)


def _sums_to_one(scores: Tensor, axis: int) -> Tensor:
    """Whether these are log-probabilities, a 0-D tensor of 0 or 1."""
    return (_some_rows(scores, axis).logsumexp(1).abs() < 1e-2).all().float()


def _some_rows(scores: Tensor, axis: int) -> Tensor:
    rows = scores.movedim(axis, -1)
    if rows.ndim > 2:  # no copy of all: the first positions of some samples
        rows = rows[:MAX_ROWS].flatten(1, -2)[:, : max(1, MAX_ROWS // rows.shape[0])]
    rows = rows.reshape(-1, rows.shape[-1])
    return wide(rows[:: max(1, rows.shape[0] // MAX_ROWS)][:MAX_ROWS])
