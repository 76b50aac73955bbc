"""The edit of a loop that clears its gradients between the backward pass and the step."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, Script, last_name


def clear_after_step(draft: Draft, value: Any) -> None:
    """Each call that cleared what a step was to use, moved behind that step."""
    clears = draft.survey.get("clearing", {}).get("clears", ())
    if not clears:
        raise NoPatch("it is not known where the gradients are cleared")
    for clear in clears:
        stmt = _clearing(draft.script, clear["place"])
        steps = {_stepping(draft.script, place): None for place in clear["steps"]}
        for step in steps:
            _check_reach(draft.script, stmt, step)
        draft.after(_last(draft.script, list(steps)), ast.unparse(stmt))
        _take_out(draft, stmt)


def _clearing(script: Script, place: Mapping[str, Any]) -> ast.stmt:
    call = script.call(place, lambda c: last_name(c.func) == "zero_grad")
    if last_name(call.func) != "zero_grad":
        raise NoPatch(f"line {call.lineno} clears the gradients inside of what it calls")
    stmt = script.statement(call)
    if not isinstance(stmt, ast.Expr) or stmt.value is not call:
        raise NoPatch(f"line {call.lineno} does more than to clear the gradients")
    return stmt


def _stepping(script: Script, place: Mapping[str, Any]) -> ast.stmt:
    call = script.call(place, lambda c: last_name(c.func) == "step")
    stmt = script.statement(call)
    if not isinstance(stmt, (ast.Expr, ast.Assign)):
        raise NoPatch(f"line {call.lineno} does more than to step, and nothing can be put behind the step")
    return stmt


def _check_reach(script: Script, stmt: ast.stmt, step: ast.stmt) -> None:
    """A step runs only where the call that clears has run: it stands in the same block, or deeper in that."""
    if script.scope(stmt) is not script.scope(step):
        raise NoPatch(
            f"line {stmt.lineno} clears the gradients in another function than line {step.lineno} steps in"
        )
    outer: ast.AST = stmt
    while isinstance(script.parent(outer), (ast.With, ast.AsyncWith)):
        outer = script.parent(outer)  # type: ignore[assignment]
    block = _block(script, outer)
    if not any(node in block for node in (step, *script.above(step))):
        raise NoPatch(
            f"line {stmt.lineno} clears the gradients in a branch or a loop without the step of line {step.lineno}"
        )


def _last(script: Script, steps: Sequence[ast.stmt]) -> ast.stmt:
    """Of several steps that one call has left without gradients."""
    last = max(steps, key=script.start)
    if not all(step in _block(script, last) for step in steps):
        raise NoPatch(f"line {steps[0].lineno} and line {last.lineno} step in different branches")
    return last


def _block(script: Script, stmt: ast.AST) -> list[Any]:
    """The statements among which one stands."""
    blocks = [b for _, b in ast.iter_fields(script.parent(stmt) or script.tree) if isinstance(b, list)]
    return next(b for b in blocks if stmt in b)


def _take_out(draft: Draft, stmt: ast.stmt) -> None:
    script, block = draft.script, _block(draft.script, stmt)
    start, end = script.start(stmt), script.end(stmt)
    line_end = script.line_end(script.line_of(end))
    rest = script.data[end:line_end].decode()
    at = block.index(stmt)
    if len(block) == 1:
        draft.cut(start, end, "pass")
    elif script.margin(stmt) is not None and re.fullmatch(r"[ \t\f;]*(#[^\r\n]*)?(\r\n|\r|\n)?", rest):
        draft.cut(script.offset(stmt.lineno, 0), line_end, "")
    elif rest.lstrip(" \t").startswith(";") and at + 1 < len(block):
        draft.cut(start, script.start(block[at + 1]), "")
    else:
        draft.cut(script.end(block[at - 1]), end, "")
