"""The elementwise function that the output of a weight goes through, whatever way it is written."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.init._calls import ATTENTION, CONTRACTIONS, PRODUCTS, SOFTMAX
from steadygrad.init._trace import Node
from steadygrad.init.gain import ACTIVATIONS, Activation, as_function

_STATISTIC = 6  # calls from a mean or a sum to the product that it normalises
_COPIES = frozenset("float double half bfloat16 to type_as contiguous clone detach".split())
_GRID = torch.linspace(-8, 8, 321, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class _Slot:
    """Stands for the result of an earlier step; 0 is the pre-activation."""

    index: int


class Expression:
    """A chain of elementwise torch calls with one input, replayed on any tensor: ``x * sigmoid(x)`` is one."""

    def __init__(
        self, label: str, steps: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
    ) -> None:
        self.label, self.steps = label, steps

    @cached_property
    def key(self) -> bytes:
        """The same for expressions with the same values, so that their gains need working out once."""
        values = _values(self)
        return self.label.encode() + (b"" if values is None else values.numpy().tobytes())

    def __call__(self, x: Tensor) -> Tensor:
        results = [x]

        def given(value: Any) -> Any:
            # a clone, because a step may work in place
            return results[value.index].clone() if isinstance(value, _Slot) else value

        for func, args, kwargs in self.steps:
            results.append(func(*map(given, args), **{k: given(v) for k, v in kwargs.items()}))
        return results[-1]

    def __repr__(self) -> str:
        return f"<elementwise function {self.label}>"


@dataclass(frozen=True)
class Following:
    """What follows the output of a weight before the next weight."""

    label: str  # name in gain.ACTIVATIONS, or the torch functions in it
    activation: Activation | None  # for the functions in gain; None if it has no finite value somewhere
    path: tuple[Node, ...] = ()  # nodes between the weight and the activation: norms, pooling, sums
    after: Node | None = None  # the activated value; None if nothing but linear things follows
    gated: bool = (
        False  # the activated part of the output multiplies another part of it: a packed SwiGLU, GEGLU or GLU
    )


def following_activation(output: Node) -> Following:
    """Search forward from the output of a weight, through norms, pooling, dropout, reshapes and sums, for the nearest
    nonlinear elementwise function; "identity" if another weight, a softmax or the end comes first."""
    level: list[tuple[Node, tuple[Node, ...]]] = [(output, ())]
    seen = {output}
    while level:
        found: list[tuple[Node, Expression, tuple[Node, ...]]] = []
        ended = False
        following: list[tuple[Node, tuple[Node, ...]]] = []
        for start, path in level:
            inside = _region(start)
            for node in inside:
                leaving = [c for c in node.children if c not in inside]
                if not (node.floating and (leaving or not node.children)):
                    continue
                if node is not start and _is_nonlinear(expression := _expression(start, node)):
                    if not (leaving and all(_is_statistic(c, inside) for c in leaving)):
                        found.append((node, expression, path))
                    continue
                for child in leaving:
                    if child.name == "glu":
                        return Following("sigmoid", "sigmoid", path, child, gated=True)
                    if child.name.startswith("opaque:") and child.call is None and not child.weights:
                        return Following(child.name, None, path, child)
                    if child.weights or child.name in SOFTMAX | ATTENTION | CONTRACTIONS:
                        ended = True
                    elif child not in seen:
                        seen.add(child)
                        following.append((child, (*path, child)))
        if found:
            # SwiGLU with a limit clamps both parts: that of the gated one is not what the gate goes through
            rest = [f for f in found if not _only_limits(f[1])]
            limited = 0 < len(rest) < len(found)
            found = sorted(rest if limited else found, key=lambda f: f[0].index)
            names = [_named(*one, within=3.0 if limited else 8.0) for one in found]
            labels = list(dict.fromkeys(named.label for named in names))
            if len(labels) > 1:  # parts of one output go different ways, as in an LSTM by hand
                return Following("|".join(labels), None, names[0].path)
            return replace(names[0], gated=_gates_its_own(found[0][0], output))
        if ended:
            break
        level = following
    return Following("identity", "identity")


def _is_statistic(child: Node, inside: list[Node]) -> bool:
    """Whether this only leads back to what it was made from, as the mean square in a norm written out does."""
    level = [child]
    for _ in range(_STATISTIC):
        level = [c for node in level for c in node.children if not c.weights]
        if any(p in inside for node in level for p in node.parents):
            return True
    return False


def _gates_its_own(activated: Node, output: Node) -> bool:
    """Whether the activated value is multiplied with another part of the same weight's output."""
    others = [p for c in activated.children if c.name in PRODUCTS for p in c.parents if p is not activated]
    seen = set(others)
    while others:
        node = others.pop()
        if node is output:
            return True
        for parent in () if node.weights else node.parents:
            if parent not in seen and parent.index >= output.index:
                seen.add(parent)
                others.append(parent)
    return False


def _region(start: Node) -> list[Node]:
    """``start`` and every node that is an elementwise function of it alone, in order of execution."""
    inside = {start: None}
    heap = [(c.index, c) for c in start.children]
    heapq.heapify(heap)
    while heap:
        _, node = heapq.heappop(heap)
        if node in inside or (node.call is None) or not all(p in inside for p in node.parents):
            continue
        inside[node] = None
        for child in node.children:
            heapq.heappush(heap, (child.index, child))
    return list(inside)


def _expression(start: Node, end: Node) -> Expression:
    needed: dict[int, Node] = {}
    stack = [end]
    while stack:
        node = stack.pop()
        if node is not start and node.index not in needed:
            needed[node.index] = node
            stack.extend(node.parents)
    slots = {start: _Slot(0)}
    steps, names = [], []
    for index in sorted(needed):
        node = needed[index]
        assert node.call is not None

        def slot(value: Any) -> Any:
            return slots[value] if isinstance(value, Node) else value

        func, args = node.call.func, tuple(map(slot, node.call.args))
        kwargs = {k: slot(v) for k, v in node.call.kwargs.items()}
        if node.name in _COPIES:
            func, args, kwargs = _identity, args[:1], {}
        elif node.name.startswith("rrelu"):  # random in training: the mean slope stands for it
            lower, upper = (kwargs.get(k, d) for k, d in (("lower", 1 / 8), ("upper", 1 / 3)))
            lower, upper = args[1] if len(args) > 1 else lower, args[2] if len(args) > 2 else upper
            func, args, kwargs = F.leaky_relu, (args[0], (lower + upper) / 2), {}
        elif isinstance(func, nn.Module):
            func = as_function(func)
        steps.append((func, args, kwargs))
        slots[node] = _Slot(len(steps))
        if node.name not in _COPIES:
            names.append(node.name.strip("_").removeprefix("opaque:"))
    return Expression("*".join(dict.fromkeys(names)), steps)


def _identity(x: Tensor) -> Tensor:
    return x


def _values(function: Activation) -> Tensor | None:
    """On a grid; None if it cannot be replayed there."""
    try:
        with torch.no_grad():
            values = as_function(function)(_GRID.clone())
    except Exception:  # noqa: BLE001  a call that cannot take a float64 vector is no elementwise function
        return None
    return values.double() if isinstance(values, Tensor) and values.shape == _GRID.shape else None


def _is_nonlinear(expression: Expression) -> bool:
    values = _values(expression)
    if values is None:
        return False
    if not values.isfinite().all():
        return True
    bend = (values[2:] - 2 * values[1:-1] + values[:-2]).abs().max()
    return bool(bend > 1e-7 * (values.abs().max() + 1e-12))


def _only_limits(expression: Expression) -> bool:
    """Whether it leaves alone what lies within three standard deviations of a unit signal."""
    values = _values(expression)
    inner = _GRID.abs() <= 3
    return values is not None and bool((values - _GRID)[inner].abs().max() == 0)


@lru_cache(maxsize=1)
def _known() -> dict[str, Tensor]:
    known = {name: _values(name) for name in ACTIVATIONS if name != "identity"}
    return {name: v for name, v in known.items() if v is not None}


def _named(node: Node, expression: Expression, path: tuple[Node, ...], within: float) -> Following:
    """By the function of ``gain.ACTIVATIONS`` that it equals up to ``within``."""
    values = _values(expression)
    assert values is not None
    if not values.isfinite().all():
        return Following(expression.label, None, path, node)
    inner = _GRID.abs() <= within
    for name, known in _known().items():
        if (values - known)[inner].abs().max() <= 1e-6:  # constants of hand-written forms are rounded
            return Following(name, name, path, node)
    return Following(expression.label, expression, path, node)
