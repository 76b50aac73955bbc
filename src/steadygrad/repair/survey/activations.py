"""Which activations stand between layers, and which at the output: by module, or by line where they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from steadygrad.init._calls import PRODUCTS
from steadygrad.init._trace import Node
from steadygrad.init._weights import weight_name
from steadygrad.init.follow import _weight_after
from steadygrad.locating.frames import Site
from steadygrad.repair.effects.activation import CALLED

Place = Literal["hidden", "output", "kept"]
NORMALISED = ("Softmax", "LogSoftmax")  # at an output only; between layers they are attention
GATE = 4  # calls from an activation to the product in which it is a gate


def find_activations(
    nodes: Sequence[Node],
    sites: Mapping[Node, Site],
    modules: Mapping[str, nn.Module],
    recurrent: set[str],
) -> dict[str, dict[str, Any]]:
    """The activations of a recorded run, as ``{"hidden": {"modules": {path: kind}, "calls": [...]}, "output": ...}``.

    ``kind`` is torch's name as a module, "ReLU". A call is ``{"file", "line", "kind"}``, for those that no module of
    torch makes, and for a module that serves both between layers and at the output. Left out is what must stay:
    gates, activations of a recurrence, softmax between layers, and lines on which both stand.
    """
    after = _weight_after(list(nodes))
    places = [(node, _place(node, after[node], recurrent)) for node in nodes if node in sites]
    result = {}
    for place in ("hidden", "output"):
        chosen = [node for node, at in places if at == place]
        others = [node for node, at in places if at != place]
        other_modules = {node.module for node in others}
        other_lines = {(sites[node], CALLED[node.name]) for node in others}
        by_module: dict[str, str] = {}
        calls: dict[tuple[Site, str], None] = {}
        for node in chosen:
            kind = CALLED[node.name]
            if _is_module(modules.get(node.module), kind) and node.module not in other_modules:
                by_module[node.module] = kind
            elif sites[node].path and (sites[node], kind) not in other_lines:
                calls[sites[node], kind] = None
        lines = [{"file": site.shown(), "line": site.line, "kind": kind} for site, kind in calls]
        result[place] = {"modules": by_module, "calls": lines}
    return result


def _place(node: Node, leads_on: bool, recurrent: set[str]) -> Place:
    if _is_gate(node) or _above(node) & recurrent:
        return "kept"
    if not leads_on:
        return "output"
    return "kept" if CALLED[node.name] in NORMALISED else "hidden"


def _is_gate(node: Node) -> bool:
    """Whether it is multiplied with another value, behind reshapes."""
    level = [node]
    for _ in range(GATE):
        level = [child for n in level for child in n.children if not child.weights]
        if any(child.name in PRODUCTS and len(set(child.parents)) > 1 for child in level):
            return True
        level = [child for child in level if len(child.parents) == 1]
    return False


def _above(node: Node) -> set[str]:
    """The weights next above."""
    found: set[str] = set()
    stack, seen = list(node.parents), set(node.parents)
    while stack:
        parent = stack.pop()
        if parent.weights:
            found |= {weight_name(use) for use in parent.weights}
            continue
        new = [p for p in parent.parents if p not in seen]
        seen.update(new)
        stack += new
    return found


def _is_module(module: nn.Module | None, kind: str) -> bool:
    return (
        module is not None and type(module).__name__ == kind and type(module).__module__.startswith("torch.")
    )
