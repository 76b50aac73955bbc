"""Edits of the modes in which a model runs: training mode, and full precision."""

from __future__ import annotations

import ast
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, keyword, last_name
from steadygrad.repair.patch.values import add_keyword

HALVES = ("float16", "half", "bfloat16")
OLD = ("torch.cuda.amp", "torch.cpu.amp")  # whose autocast has ``enabled`` first


def train_mode(draft: Draft, value: Any) -> None:
    """Training mode before each pass that is differentiated."""
    places = draft.survey.get("sites", {}).get("forward", ())
    if not places:
        raise NoPatch("it is not known where the model is called")
    for place in places:
        call = draft.script.call(place, lambda c: isinstance(c.func, (ast.Name, ast.Attribute)))
        if not isinstance(call.func, (ast.Name, ast.Attribute, ast.Subscript)):
            raise NoPatch(f"line {call.lineno} calls a model that has no name there")
        draft.before(draft.script.statement(call), f"{draft.script.text(call.func)}.train()")


def precision(draft: Draft, value: Any) -> None:
    """Autocast off, and float32 in the place of the half precisions."""
    script = draft.script
    contexts = [c for c in script.nodes(ast.Call) if last_name(c.func) == "autocast"]
    inside = {id(n) for c in contexts for n in ast.walk(c)}
    names = [n for n in script.nodes(ast.Attribute) if n.attr in HALVES and id(n) not in inside]
    called = {id(c.func) for c in script.nodes(ast.Call)}
    for name in names:
        end = script.end(name)
        if id(name) in called:  # x.half()
            draft.cut(end - len(name.attr), end, "float")
        elif script.text(name.value) == "torch":
            draft.cut(end - len(name.attr), end, "float32")
    for call in contexts:
        enabled = keyword(call, "enabled")
        place = 0 if _is_old(draft, call) else 2
        if enabled is None and len(call.args) > place:
            enabled = call.args[place]
        if enabled is None:
            add_keyword(draft, call, "enabled=False")
        else:
            draft.replace(enabled, "False")


def _is_old(draft: Draft, call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return draft.script.text(call.func.value) in OLD
    imported = [n for n in draft.script.nodes(ast.ImportFrom) if any(a.name == "autocast" for a in n.names)]
    return any(n.module in OLD for n in imported)
