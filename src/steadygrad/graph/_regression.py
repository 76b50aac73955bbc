"""Terms that measure a difference: torch's own, and those written by hand as squares, absolute values and norms."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from steadygrad.graph._head import RESHAPES, Arrival, constant_factor, shape_of, signed
from steadygrad.graph._terms import RawTerm, as_columns, spread, wide
from steadygrad.graph._values import Values
from steadygrad.graph.walk import Node, op, saved

FUSED = {"MseLoss": "mse", "SmoothL1Loss": "smooth_l1", "HuberLoss": "huber"}
NORMS = ("LinalgVectorNorm", "Norm")
MAX_CHECKED = 64  # rows and columns of a table that are looked at


def is_regression(node: Node) -> bool:
    """Whether a node turns predictions and targets into errors."""
    name = op(node)
    if name in FUSED:
        return True
    if name == "Dist":
        return saved(node, "p") in (1, 2)
    return _power(node) is not None and _difference(node) is not None


def read_regression(arrival: Arrival, values: Values) -> RawTerm | None:
    """The term at such a node; None where what it kept cannot be read."""
    if op(arrival.node) in FUSED:
        return _fused(arrival)
    return _dist(arrival) if op(arrival.node) == "Dist" else _by_hand(arrival, values)


def _fused(arrival: Arrival) -> RawTerm | None:
    node = arrival.node
    prediction, target = saved(node, "self"), saved(node, "target")
    if prediction is None or target is None:
        return None
    kind, reduction = FUSED[op(node)], int(saved(node, "reduction"))
    knee = float(saved(node, {"smooth_l1": "beta", "huber": "delta"}.get(kind, "")) or 0.0)
    shape = tuple(torch.broadcast_shapes(prediction.shape, target.shape))
    prediction, target = wide(prediction).expand(shape), wide(target).expand(shape)
    history = [parent for parent, _ in node.next_functions]
    if history[0] is None:  # the two arguments were swapped
        prediction, target, history = target, prediction, history[::-1]
    difference = prediction - target
    weight = spread(arrival.gradient, shape, reduction)
    maker = history[0]
    return RawTerm(
        kind,
        node,
        shape,
        _loss(difference.abs(), kind, knee),
        weight,
        arrival.way,
        as_columns(target),
        as_columns(weight),
        prediction,
        maker,
        knee=knee,
        reduction=reduction,
        moves=history[1] is not None,
        paired=_paired(difference, _before_expand(maker)),
    )


def _dist(arrival: Arrival) -> RawTerm | None:
    node = arrival.node
    history = [parent for parent, _ in node.next_functions]
    prediction, target = saved(node, "self"), saved(node, "other")
    if prediction is None or target is None or None not in history:
        return None
    if history[0] is None:
        prediction, target, history = target, prediction, history[::-1]
    difference = wide(prediction) - wide(target)
    term = _errors(arrival, difference, int(saved(node, "p")), saved(node, "result"), None)
    return replace(term, target=as_columns(wide(target)), prediction=wide(prediction), maker=history[0])


def _by_hand(arrival: Arrival, values: Values) -> RawTerm | None:
    node = arrival.node
    difference, found = saved(node, "self"), _difference(node)
    if difference is None or found is None:
        return None
    inner, sign, factor = found
    power = _power(node)
    assert power is not None
    norm = saved(node, "result") if op(node) in NORMS else None
    term = _errors(arrival, wide(difference), power, norm, factor)
    at = 0 if inner.next_functions[0][0] is not None else 1
    maker, index = inner.next_functions[at]
    paired = _paired(wide(difference), _before_expand(maker)) if factor is None else 0
    term = replace(term, maker=maker, paired=paired)
    prediction = values.read(maker, index)
    if prediction is None:
        return term
    prediction = wide(prediction).expand(shape_of(inner)).reshape(difference.shape)
    error = wide(difference) if factor is None else wide(difference) / factor
    target = prediction - sign * error
    return replace(term, target=as_columns(target), prediction=prediction)


def _errors(
    arrival: Arrival, error: Tensor, power: int, norm: Tensor | None, factor: Tensor | None
) -> RawTerm:
    """The term of a difference raised to a power, or of its norm; ``factor`` is what it was multiplied by before."""
    weight, way, shape = arrival.gradient.float(), arrival.way, tuple(error.shape)
    if norm is not None:
        weight = _kept(arrival.node, weight, error.ndim)
        if power == 2:  # d |e| = d (e^2) / (2 |e|)
            weight, way = weight / (2 * _kept(arrival.node, norm, error.ndim)), replace(way, rooted=True)
    weight = weight.expand(shape)
    if factor is not None:  # |f e|^p = |f|^p |e|^p, and 0 where the factor is
        factor = factor.expand(shape)
        weight = weight * wide(factor).abs() ** power
        error = torch.where(factor == 0, torch.zeros_like(error), error / factor)
    loss = error.abs() if power == 1 else error.square()
    kind = "l1" if power == 1 else "mse"
    return RawTerm(kind, arrival.node, shape, loss, weight, way, target_weight=as_columns(weight))


def _kept(node: Node, value: Tensor, axes: int) -> Tensor:
    """The result of a norm with its reduced axes put back."""
    dims = saved(node, "dim")
    if dims is None or saved(node, "keepdim") or value.ndim == axes:
        return value
    for dim in sorted(signed(d) % axes for d in (dims if isinstance(dims, (tuple, list)) else (dims,))):
        value = value.unsqueeze(dim)
    return value


def _power(node: Node) -> int | None:
    """1 or 2: the power to which a node raises the size of what it is given; None for another operation."""
    name = op(node)
    if name == "Pow":
        return 2 if saved(node, "exponent") == 2 else None
    if name == "Mul":
        parents = node.next_functions
        return 2 if len(parents) == 2 and parents[0][0] is not None and parents[0] == parents[1] else None
    if name == "Abs":
        return 1
    if name in NORMS:
        order = saved(node, "ord") if name == "LinalgVectorNorm" else (saved(node, "p") or 2)
        return int(order) if order in (1, 2) else None
    return None


def _difference(node: Node) -> tuple[Node, int, Tensor | None] | None:
    """The subtraction of a constant right behind a node, the sign of the prediction in it, a factor between."""
    inner, factor = node.next_functions[0][0], None
    while inner is not None and op(inner) in RESHAPES and factor is None:
        inner = inner.next_functions[0][0]
    if inner is not None and op(inner) == "Mul":
        factor = constant_factor(inner)
        inner = None if factor is None else next(p for p, _ in inner.next_functions if p is not None)
    if inner is None or op(inner) not in ("Sub", "Rsub") or saved(inner, "alpha") not in (None, 1):
        return None
    history = [parent is not None for parent, _ in inner.next_functions]
    if sum(history) != 1:
        return None
    return inner, 1 if op(inner) == "Sub" and history[0] else -1, factor


def _loss(error: Tensor, kind: str, knee: float) -> Tensor:
    """Elements of a loss from absolute errors."""
    if kind == "mse":
        return error.square()
    if kind == "l1" or knee == 0 or math.isinf(knee) and kind == "smooth_l1":
        return error
    loss = torch.where(error < knee, 0.5 * error.square(), knee * (error - 0.5 * knee))
    return loss / knee if kind == "smooth_l1" else loss


def _before_expand(node: Node | None) -> Node | None:
    while node is not None and op(node) == "Expand":
        node = node.next_functions[0][0]
    return node


def _paired(difference: Tensor, maker: Node | None) -> int:
    """Length of two axes over which the difference is a table of every prediction against every target; 0 if none.

    The shapes alone do not tell (a vector may be fitted to each row of a matrix): the difference itself must be
    a[i] - b[j] along the two axes.
    """
    if maker is None or difference.ndim < 2:
        return 0
    shape = tuple(difference.shape)
    before = shape_of(maker)
    aligned = (1,) * (len(shape) - len(before)) + before
    grown = [axis for axis, size in enumerate(shape) if size > 1 and aligned[axis] == 1]
    for new in grown:
        for old, size in enumerate(shape):
            if aligned[old] == size == shape[new] and old != new and _is_table(difference, old, new):
                return size
    return 0


def _is_table(difference: Tensor, one: int, other: int) -> bool:
    table = (
        difference.movedim((one, other), (0, 1))[:MAX_CHECKED, :MAX_CHECKED].unsqueeze(-1).flatten(2).float()
    )
    rest = table - table[:1] - table[:, :1] + table[:1, :1]
    varies = (table[:, :1] != table[:1, :1]).any() & (table[:1] != table[:1, :1]).any()
    close = rest.abs().amax() <= 1e-4 * table.abs().amax()
    return bool((varies & close).item())  # host sync, for suspicious shapes only
