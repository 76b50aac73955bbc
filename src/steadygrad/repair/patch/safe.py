"""Edits of operations that fail at the ends of their domain: calls of safe forms in their place."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.safe_helpers import HELPERS
from steadygrad.repair.patch.script import NoPatch, last_name, number
from steadygrad.repair.patch.targets import PURE

MODULES = ("torch", "F", "functional", "special", "linalg", "nn")
OPERATORS = {ast.Div: ("div", b"/"), ast.Pow: ("pow", b"**")}
PICKS = ("gather", "squeeze", "unsqueeze", "view", "reshape", "select", "flatten")
LITTLE = 1e-3  # an epsilon that was meant to keep a log finite


def safe_ops(draft: Draft, value: Mapping[str, Any]) -> None:
    """Every operation of the named lines."""
    if not value.get("sites"):
        raise NoPatch("safe forms everywhere are not written into a script: name the lines")
    draft.needs |= {"torch", "math"}
    for site in value["sites"]:
        if not draft.script.has({"file": site["file"], "owner": "user"}):
            raise NoPatch(
                f"the operation is done in {site['file']}, line {site['line']}, not in {draft.script.path}"
            )
        nodes = [
            n
            for n in draft.script.nodes((ast.Call, ast.BinOp))
            if n.lineno <= site["line"] <= (n.end_lineno or 0) and _operation(n)
        ]
        if not nodes:
            raise NoPatch(f"line {site['line']} has no operation that could be given a safe form in the text")
        for node in nodes:
            if isinstance(node, ast.BinOp):
                _operator(draft, node)
            elif site.get("as") and _operation(node) == "log":
                _linked(draft, node, site["as"])
            else:
                _call(draft, node)


def _operation(node: ast.Call | ast.BinOp) -> str:
    """Its name in HELPERS; "" for what is safe as it is."""
    if isinstance(node, ast.Call):
        name = last_name(node.func)
        return name if name in HELPERS and isinstance(node.func, ast.Attribute) else ""
    if type(node.op) not in OPERATORS:
        return ""
    right = number(node.right)
    if isinstance(node.op, ast.Div):
        return "" if right else "div"
    return "" if right is not None and right >= 0 and right.is_integer() else "pow"


def _use(draft: Draft, operation: str) -> str:
    name, helpers = HELPERS[operation]
    for helper in helpers:
        draft.helper(helper)
    return name


def _operator(draft: Draft, node: ast.BinOp) -> None:
    script = draft.script
    operation, sign = OPERATORS[type(node.op)]
    start, end = script.end(node.left), script.start(node.right)
    at = script.data.find(sign, start, end)
    if at < 0 or b"#" in script.data[start:end]:
        raise NoPatch(f"line {node.lineno} has a remark in the middle of a quotient")
    draft.insert(script.start(node), f"{_use(draft, operation)}(")
    draft.cut(at, at + len(sign), ",")
    draft.insert(script.end(node), ")")


def _is_method(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and last_name(call.func.value) not in MODULES


def _input(call: ast.Call) -> ast.expr:
    """What an operation is done to."""
    assert isinstance(call.func, ast.Attribute)
    if _is_method(call):
        return call.func.value
    if not call.args or isinstance(call.args[0], ast.Starred):
        raise NoPatch(f"line {call.lineno} calls {call.func.attr} without an input in plain sight")
    return call.args[0]


def _call(draft: Draft, call: ast.Call) -> None:
    """``torch.f(x, ...)`` and ``x.f(...)`` become ``safe_f(x, ...)``."""
    script, operation = draft.script, _operation(call)
    assert isinstance(call.func, ast.Attribute)
    function, x = _use(draft, operation), _input(call)
    first = ""
    if function == "safe_norm":
        if any(k.arg not in ("p", "dim", "keepdim") for k in call.keywords) or any(
            isinstance(n, ast.Call)
            for a in (*call.args[not _is_method(call) :], *call.keywords)
            for n in ast.walk(a)
        ):
            raise NoPatch(f"line {call.lineno} takes a norm in a way that cannot be changed")
        rest = ", ".join(script.text(a) for a in (*call.args[not _is_method(call) :], *call.keywords))
        owner = "x" if _is_method(call) else script.text(call.func.value)
        inner = [*([] if _is_method(call) else ["x"]), *([rest] if rest else [])]
        first = f"lambda x: {owner}.{call.func.attr}({', '.join(inner)}), "
    origin = _origin(draft, x) if operation == "log" else None
    if _is_method(call):
        dot = script.data.rindex(b".", script.end(x), script.end(call.func))
        opening = script.data.index(b"(", script.end(call.func))
        draft.insert(script.start(call), f"{function}({first}")
        draft.cut(dot, opening + 1, ", " if call.args or call.keywords else "")
    else:
        draft.replace(call.func, function)
        if first:
            draft.insert(script.data.index(b"(", script.end(call.func)) + 1, first)
    if origin is not None:
        draft.insert(script.end(call) - 1, f", lambda: {origin}")


def _origin(draft: Draft, x: ast.expr) -> str | None:
    """The log of a softmax or sigmoid as one operation, of what went into it; None if x is not known to be one."""
    script = draft.script
    if isinstance(x, ast.Name):
        scope = script.scope(x)
        stored = [
            n for n in script.nodes(ast.Name, scope) if n.id == x.id and not isinstance(n.ctx, ast.Load)
        ]
        parent = script.parent(stored[0]) if len(stored) == 1 else None
        return (
            _origin(draft, parent.value)
            if isinstance(parent, ast.Assign) and parent.targets == stored
            else None
        )
    if isinstance(x, ast.BinOp) and isinstance(x.op, ast.Sub) and number(x.left) == 1:
        inner = _origin(draft, x.right)
        head = "torch.nn.functional.logsigmoid("
        return (
            f"{head}-({inner.removeprefix(head)[:-1]}))"
            if inner is not None and inner.startswith(head)
            else None
        )
    if isinstance(x, ast.Subscript):
        inner = _origin(draft, x.value)
        return None if inner is None else f"{inner}[{script.text(x.slice)}]"
    if not isinstance(x, ast.Call) or not isinstance(x.func, ast.Attribute):
        return None
    rest = [script.text(a) for a in (*x.args[not _is_method(x) :], *x.keywords)]
    if last_name(x.func) in PICKS and _is_method(x):
        inner = _origin(draft, x.func.value)
        return None if inner is None else f"{inner}.{x.func.attr}({', '.join(rest)})"
    if last_name(x.func) not in ("softmax", "sigmoid") or not _is_method(x) and not x.args:
        return None
    z = _input(x)
    if not all(isinstance(n, PURE) for n in ast.walk(z)):
        return None
    if last_name(x.func) == "sigmoid":
        return f"torch.nn.functional.logsigmoid({script.text(z)})"
    return f"torch.log_softmax({', '.join([script.text(z), *rest])})"


def _linked(draft: Draft, call: ast.Call, function: str) -> None:
    """A log of any number z, or of 1 - z, that wants a probability: of the sigmoid or the softmax of z."""
    x = _input(call)
    if isinstance(x, ast.BinOp) and isinstance(x.op, ast.Add) and 0 < (number(x.right) or 0.0) < LITTLE:
        x = x.left
    sign = ""
    if isinstance(x, ast.BinOp) and isinstance(x.op, ast.Sub) and number(x.left) == 1:
        x, sign = x.right, "-"
    z = draft.script.text(x)
    if function == "logsigmoid" or sign:
        new = f"torch.nn.functional.logsigmoid({f'-({z})' if sign else z})"
    else:
        new = f"torch.log_softmax({z}, min(1, ({z}).dim() - 1))"
    draft.replace(call, new)
