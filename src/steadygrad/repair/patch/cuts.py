"""Edits where gradients are cut off: ``detach``, ``.data`` and ``no_grad`` taken out of the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, last_name
from steadygrad.repair.patch.values import ATOMS

DETACH = ("detach", "detach_")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def pass_gradients(draft: Draft, value: Mapping[str, Any]) -> None:
    """Every cut of the named lines."""
    for site in value["sites"]:
        if not draft.script.has({"file": site["file"], "owner": "user"}):
            raise NoPatch(
                f"gradients are cut off in {site['file']}, line {site['line']}, not in {draft.script.path}"
            )
        {"detach": _detach, "data": _data, "no_grad": _no_grad}[site["op"]](draft, int(site["line"]))


def _detach(draft: Draft, line: int) -> None:
    script = draft.script
    calls = [
        c
        for c in script.nodes(ast.Call)
        if isinstance(c.func, ast.Attribute) and c.func.attr in DETACH and c.func.end_lineno == line
    ]
    if not calls:
        raise NoPatch(f"line {line} has no detach() in the text")
    for call in calls:
        if isinstance(script.parent(call), ast.Expr):
            draft.replace(call, "pass")
        elif not call.args and not call.keywords:
            _cut_attribute(draft, call.func, script.end(call))
        elif script.text(call.func.value) == "torch" and len(call.args) == 1:
            x = call.args[0]
            if isinstance(x, ast.Starred):
                raise NoPatch(f"line {line} detaches what is not named there")
            draft.cut(script.start(call), script.start(x), "" if isinstance(x, ATOMS) else "(")
            draft.cut(script.end(x), script.end(call), "" if isinstance(x, ATOMS) else ")")
        else:
            raise NoPatch(f"line {line} calls a detach that is not torch's")


def _data(draft: Draft, line: int) -> None:
    found = [n for n in draft.script.nodes(ast.Attribute) if n.attr == "data" and n.end_lineno == line]
    found = [n for n in found if isinstance(n.ctx, ast.Load)]
    if len(found) != 1:  # what holds no tensor has a .data of its own
        raise NoPatch(f"which .data of line {line} cuts gradients off cannot be told")
    _cut_attribute(draft, found[0], draft.script.end(found[0]))


def _cut_attribute(draft: Draft, node: ast.Attribute, end: int) -> None:
    """Take ``.name`` away, and what follows it up to ``end``."""
    script = draft.script
    after = script.end(node.value)
    dot = script.data.rindex(b".", after, script.end(node))
    if b"#" not in script.data[after:dot]:
        dot -= len(script.data[after:dot]) - len(script.data[after:dot].rstrip())
    draft.cut(dot, end, "")


def _no_grad(draft: Draft, line: int) -> None:
    """A decorator goes, and so does a block, whose body moves to the left."""
    script = draft.script
    for function in script.nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        decorators = function.decorator_list
        if decorators and decorators[0].lineno == line:
            return _undecorate(draft, function, line)
    blocks = [
        (block, item)
        for block in script.nodes((ast.With, ast.AsyncWith))
        for item in block.items
        if _switches_off(item.context_expr)
        and item.context_expr.lineno <= line <= (item.context_expr.end_lineno or 0)
    ]
    if len(blocks) != 1:
        raise NoPatch(f"line {line} has no block of no_grad in the text")
    block, item = blocks[0]
    if item.optional_vars is not None:
        raise NoPatch(f"line {line} gives no_grad a name")
    if len(block.items) > 1:
        draft.needs.add("torch")
        draft.replace(item.context_expr, "torch.set_grad_enabled(torch.is_grad_enabled())")
    else:
        _dedent(draft, block)


def _undecorate(draft: Draft, function: Function, line: int) -> None:
    script = draft.script
    guilty = [d for d in function.decorator_list if _switches_off(d)]
    if not guilty:
        raise NoPatch(f"line {line} has no decorator of no_grad in the text")
    for decorator in guilty:
        draft.cut(script.offset(decorator.lineno, 0), script.line_end(decorator.end_lineno or 0), "")


def _dedent(draft: Draft, block: ast.With) -> None:
    script, first, last = draft.script, block.body[0], block.end_lineno or 0
    margin, inner = script.margin(block), script.margin(first)
    if margin is None:
        raise NoPatch(f"line {block.lineno} holds more than one statement: give each its own line first")
    if inner is None:  # the body stands behind the colon
        draft.cut(script.start(block), script.start(first), "")
        return
    begin = script.offset(block.lineno, 0)
    header_end = script.line_end(_last_line_of_header(draft, block))
    inside = {
        line
        for text in script.nodes((ast.Constant, ast.JoinedStr), block)
        for line in range(text.lineno + 1, (text.end_lineno or 0) + 1)
    }
    draft.cut(begin, header_end, "")
    for line in range(script.line_of(header_end), last + 1):
        start = script.offset(line, 0)
        white = re.match(rb"[ \t]*", script.data[start : script.line_end(line)])
        wide = min(len(white[0]) if white else 0, len(inner) - len(margin))
        if line not in inside and wide:
            draft.cut(start, start + wide, "")


def _last_line_of_header(draft: Draft, block: ast.With) -> int:
    """The line of its colon."""
    script = draft.script
    after = script.end(block.items[-1].context_expr)
    between = script.data[after : script.start(block.body[0])]
    colon = re.match(rb"[\s,)\\]*:", between)
    if colon is None:
        raise NoPatch(f"line {block.lineno} has a remark in the middle of its block's head")
    return script.line_of(after + colon.end() - 1)


def _switches_off(node: ast.AST) -> bool:
    """Whether it is ``torch.no_grad()``, ``torch.no_grad`` or ``torch.set_grad_enabled(False)``."""
    if isinstance(node, ast.Call) and last_name(node.func) == "set_grad_enabled":
        given = [*node.args, *(k.value for k in node.keywords)]
        return [getattr(a, "value", None) for a in given] == [False]
    return last_name(node.func if isinstance(node, ast.Call) else node) == "no_grad"
