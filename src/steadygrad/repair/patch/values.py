"""A number of the user's, changed where it is written: a literal, a name, an option, an entry, or an expression."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import Script, keyword, last_name, number

ATOMS = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Constant)


def literal(value: float) -> str:
    """A number as people write it; exact to the last few bits of a double.

    Example:
        >>> literal(3e-4 * 0.1), literal(0.5), literal(2.0)
        ('3e-05', '0.5', '2.0')
    """
    short = f"{value:.12g}"
    text = short if abs(float(short) - value) <= 4 * math.ulp(value) else repr(value)
    return text if any(c in text for c in ".en") else f"{text}.0"


def change(draft: Draft, expr: ast.expr, new: Callable[[float], float], form: str) -> bool:
    """Change a number, at its source if it is used for nothing else, else in the expression itself.

    Args:
        new: gives the new value for an old one.
        form: the same as an expression, with ``{}`` in the place of the old: ``"{} * 0.1"``.

    Returns:
        Whether the text has changed; a literal may be what it should be already.
    """
    source = definition(draft, expr)
    value = number(source)
    if source is None or value is None:
        text = draft.script.text(expr)
        free = form.startswith(("min(", "max(")) or isinstance(expr, ATOMS)
        draft.replace(expr, form.format(text if free else f"({text})"))
        return True
    if new(value) == value:
        return False
    draft.replace(source, literal(new(value)))
    flag = _flag(draft.script, source)
    if flag:
        draft.note(f"the same without the patch: run the script with {flag} {literal(new(value))}")
    return True


def definition(draft: Draft, expr: ast.expr) -> ast.expr | None:
    """The literal that an expression stands for, if nothing else is made of it; None if there is none."""
    if number(expr) is not None:
        return expr
    if isinstance(expr, ast.Name):
        return _of_name(draft.script, expr)
    if isinstance(expr, ast.Attribute) and isinstance(expr.value, ast.Name):
        return _of_attribute(draft, expr)
    if isinstance(expr, ast.Subscript) and isinstance(expr.slice, ast.Constant):
        return _of_entry(draft.script, expr)
    return None


# ---------------------------------------------------------------------- names
def _of_name(script: Script, expr: ast.Name) -> ast.expr | None:
    name = expr.id
    if any(name in n.names for n in script.nodes((ast.Global, ast.Nonlocal))):
        return None
    scopes = [
        n for n in script.above(expr) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module))
    ]
    for scope in scopes:
        stored = [n for n in _names(script, scope, name) if not isinstance(n.ctx, ast.Load)]
        parameter = _parameter(scope, name)
        if not stored and parameter is None:
            continue
        reads = [n for n in script.nodes(ast.Name, scope) if n.id == name and isinstance(n.ctx, ast.Load)]
        if len(reads) != 1 or len(stored) + (parameter is not None) != 1:
            return None
        return _assigned(script, stored[0]) if stored else _default(script, scope, name)  # type: ignore[arg-type]
    return None


def _names(script: Script, scope: ast.AST, name: str) -> list[ast.Name]:
    return [n for n in script.nodes(ast.Name, scope) if n.id == name and script.scope(n) is scope]


def _assigned(script: Script, target: ast.Name) -> ast.expr | None:
    """The literal that is assigned to a target, alone or in a tuple of targets."""
    parent = script.parent(target)
    if isinstance(parent, ast.Tuple):
        outer = script.parent(parent)
        if isinstance(outer, ast.Assign) and len(outer.targets) == 1 and isinstance(outer.value, ast.Tuple):
            if len(outer.value.elts) == len(parent.elts):
                value = outer.value.elts[parent.elts.index(target)]
                return value if number(value) is not None else None
        return None
    if isinstance(parent, ast.Assign) and parent.targets == [target] or isinstance(parent, ast.AnnAssign):
        inside_class = isinstance(script.parent(parent), ast.ClassDef)
        return parent.value if not inside_class and number(parent.value) is not None else None
    return None


def _parameter(scope: ast.AST, name: str) -> ast.arg | None:
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    a = scope.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    return next((arg for arg in every if arg is not None and arg.arg == name), None)


def _default(script: Script, function: ast.FunctionDef, name: str) -> ast.expr | None:
    """The literal default of a parameter that no call in this file gives."""
    a = function.args
    placed = [*a.posonlyargs, *a.args]
    defaults: dict[str, ast.expr | None] = dict(
        zip([p.arg for p in placed[::-1]], a.defaults[::-1], strict=False)
    )
    defaults |= dict(zip([p.arg for p in a.kwonlyargs], a.kw_defaults, strict=True))
    default = defaults.get(name)
    if number(default) is None or function.decorator_list:
        return None
    uses = [n for n in script.nodes((ast.Name, ast.Attribute)) if last_name(n) == function.name]
    calls = [c for c in script.nodes(ast.Call) if last_name(c.func) == function.name]
    position = next((i for i, p in enumerate(placed) if p.arg == name), len(placed))
    for call in calls:
        open_ended = any(isinstance(x, ast.Starred) for x in call.args) or any(
            k.arg is None for k in call.keywords
        )
        if open_ended or keyword(call, name) is not None or len(call.args) > position:
            return None
    return default if len(uses) == len(calls) else None


# ---------------------------------------------------------------------- options and settings
def _of_attribute(draft: Draft, expr: ast.Attribute) -> ast.expr | None:
    """``args.lr`` of argparse, or a field of a class of settings."""
    script, name = draft.script, expr.attr
    uses = [n for n in script.nodes(ast.Attribute) if n.attr == name]
    if len(uses) != 1:
        return None
    options = [
        c for c in script.nodes(ast.Call) if last_name(c.func) == "add_argument" and _destination(c) == name
    ]
    if options:
        given = set(draft.survey.get("sites", {}).get("flags", ()))
        default = keyword(options[0], "default")
        known = len(options) == 1 and not given & set(_flags(options[0])) and number(default) is not None
        return default if known else None
    fields = [
        (c, s) for c in script.nodes(ast.ClassDef) for s in c.body if isinstance(s, ast.AnnAssign)
        and isinstance(s.target, ast.Name) and s.target.id == name and number(s.value) is not None
    ]  # fmt: skip
    if len(fields) != 1:
        return None
    owner, field = fields[0]
    made = [c for c in script.nodes(ast.Call) if last_name(c.func) == owner.name]
    given_there = any(c.args or any(k.arg in (name, None) for k in c.keywords) for c in made)
    return None if given_there else field.value


def _flags(option: ast.Call) -> list[str]:
    return [a.value for a in option.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def _destination(option: ast.Call) -> str:
    dest = keyword(option, "dest")
    if isinstance(dest, ast.Constant):
        return str(dest.value)
    flags = _flags(option)
    long = next((f for f in flags if f.startswith("--")), flags[0] if flags else "")
    return long.lstrip("-").replace("-", "_")


def _flag(script: Script, default: ast.expr) -> str:
    """The option whose default this literal is."""
    for above in script.above(default):
        if isinstance(above, ast.Call):
            if last_name(above.func) != "add_argument" or keyword(above, "default") is not default:
                return ""
            flags = _flags(above)
            return next((f for f in flags if f.startswith("--")), flags[0] if flags else "")
    return ""


def _of_entry(script: Script, expr: ast.Subscript) -> ast.expr | None:
    """``cfg["lr"]``, where one dict of the file has such an entry and nothing else reads it."""
    assert isinstance(expr.slice, ast.Constant)
    key, base = expr.slice.value, script.text(expr.value)
    uses = [n for n in script.nodes(ast.Subscript) if _is(n.slice, key)]
    asked = [
        c for c in script.nodes(ast.Call) if last_name(c.func) == "get" and c.args and _is(c.args[0], key)
    ]
    spread = [
        k
        for c in script.nodes(ast.Call)
        for k in c.keywords
        if k.arg is None and script.text(k.value) == base
    ]
    if len(uses) != 1 or asked or spread:
        return None
    entries = [
        v for d in script.nodes(ast.Dict) for k, v in zip(d.keys, d.values, strict=True) if k and _is(k, key)
    ]
    entries += [
        k.value
        for c in script.nodes(ast.Call)
        if last_name(c.func) == "dict"
        for k in c.keywords
        if k.arg == key
    ]
    return entries[0] if len(entries) == 1 and number(entries[0]) is not None else None


def _is(node: Any, key: Any) -> bool:
    return isinstance(node, ast.Constant) and node.value == key


# ---------------------------------------------------------------------- arguments
def add_keyword(draft: Draft, call: ast.Call, text: str) -> None:
    """Give a call one more argument, last."""
    script = draft.script
    end = script.end(call) - 1
    given = [*call.args, *(k.value for k in call.keywords)]
    if not given:
        draft.insert(end, text)
        return
    gap = script.data[max(script.end(a) for a in given) : end].decode()
    bare = "\n".join(line.split("#")[0] for line in gap.splitlines())
    comma = bare.rstrip(" \t\r\n").endswith(",")
    draft.insert(end, f" {text}" if comma else f", {text}")
