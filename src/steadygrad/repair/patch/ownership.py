"""Edits of what an optimizer is built from."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, argument
from steadygrad.repair.patch.targets import Built, built

LOOPS = (ast.For, ast.AsyncFor, ast.While)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def own_parameters(draft: Draft, value: Any) -> None:
    """Forgotten parameters are added to the arguments; an optimizer older than its model is built behind it.

    Raises:
        NoPatch: neither can be read off where the optimizer is built.
    """
    models = draft.survey.get("unowned", {}).get("models", ())
    if not models:
        raise NoPatch("it is not known which parameters the optimizer lacks")
    for model in models:
        site = _site(draft, model)
        if model["kind"] == "forgotten" and not _within(draft, site.call, model):
            _added(draft, site, model)
        else:
            _moved(draft, site.call)


def _site(draft: Draft, model: Mapping[str, Any]) -> Built:
    """Where the optimizer that lacks them is built."""
    sites = built(draft)
    if len(sites) == 1:
        return sites[0]
    every = draft.survey["sites"]["optimizers"]
    if len(every) == model["optimizers"]:
        for site in sites:
            if site.facts is every[model["optimizer"]]:
                return site
    raise NoPatch("which of the optimizers lacks parameters cannot be told from the script")


def _within(draft: Draft, call: ast.Call, model: Mapping[str, Any]) -> bool:
    """Whether the optimizer is given all of a model that has these parameters by now."""
    params = argument(call, "params", 0)
    given = "" if params is None else draft.script.text(params).removesuffix(".parameters()")
    said = [e.removeprefix("*") for named in model["names"] for e in named["params"]]
    return any(e.startswith((f"{given}.", f"{given}[")) for e in said)


# ---------------------------------------------------------------------- built later
def _moved(draft: Draft, call: ast.Call) -> None:
    """Put the statement, with those that need what it makes, behind the last that makes the model another one."""
    script = draft.script
    stmt = script.statement(call)
    block = next(b for b in _blocks(script.parent(stmt)) if stmt in b)
    first = block.index(stmt)
    params = argument(call, "params", 0)
    model = _loaded(params) if params is not None else set()
    needs, moved, last = _stored(stmt), [stmt], 0
    waiting: list[ast.stmt] = []
    for at, other in enumerate(block[first + 1 :], first + 1):
        if isinstance(other, LOOPS) and needs & _loaded(other):
            break
        if isinstance(other, DEFINITIONS):
            continue
        if needs & _loaded(other):
            waiting.append(other)
            needs |= _stored(other)
        elif model & _stored(other):
            last = at
            moved += waiting
            waiting = []
    if not last:
        raise NoPatch(
            f"line {call.lineno} builds the optimizer, and where the model becomes another behind it cannot be told"
        )
    if last + 1 >= len(block):
        raise NoPatch(
            f"nothing follows line {block[last].lineno}, behind which the optimizer has to be built"
        )
    for other in moved:
        margin = script.margin(other)
        start, end = script.offset(other.lineno, 0), script.line_end(other.end_lineno or 0)
        rest = script.data[script.end(other) : end].decode().strip()
        if not isinstance(other, (ast.Assign, ast.AnnAssign)) or margin is None or rest[:1] not in ("", "#"):
            raise NoPatch(f"line {other.lineno} has to come behind line {block[last].lineno}")
        draft.cut(start, end, "")
        lines = script.data[start:end].decode().rstrip("\r\n").splitlines()
        draft.before(block[last + 1], "\n".join(line.removeprefix(margin) for line in lines))


def _blocks(parent: ast.AST | None) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list):
            yield block


def _loaded(node: ast.AST) -> set[str]:
    """The names that are read; of ``self.model`` both parts."""
    return {t for n in ast.walk(node) if (t := _name(n)) and isinstance(n.ctx, ast.Load)}  # type: ignore[attr-defined]


def _stored(stmt: ast.stmt) -> set[str]:
    """The names that get another value, or another part: ``model`` of ``model.head = ...``."""
    stored = {n for n in ast.walk(stmt) if isinstance(getattr(n, "ctx", None), ast.Store)}
    found = {_name(n) for n in stored}
    for n in stored:
        while isinstance(n, (ast.Attribute, ast.Subscript)):
            n = n.value
            found.add(_name(n))
    return found - {"", "self"}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id if node.id != "self" else ""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return f"self.{node.attr}"
    return ""


# ---------------------------------------------------------------------- given more
def _added(draft: Draft, site: Built, model: Mapping[str, Any]) -> None:
    """The forgotten parameters, behind those that are given."""
    script, call = draft.script, site.call
    params = argument(call, "params", 0)
    if params is None or site.facts["groups"] != 1 or _has_groups(params):
        raise NoPatch(
            f"line {call.lineno} builds the optimizer from groups, and which of them lacks more is a choice"
        )
    if "named_parameters" in script.text(params):
        raise NoPatch(f"line {call.lineno} gives the optimizer its parameters with their names")
    scope = script.scope(call)
    for named in model["names"]:
        if not script.has(named["place"]):
            continue
        line = named["place"]["line"]
        scopes = [n for n in ast.walk(script.tree) if _covers(n, line)]
        if scope is not script.tree and scope not in scopes and not _same_class(draft, scope, scopes):
            continue
        if _known_before(named["params"], scope, script.tree, call.lineno):
            given = script.text(params)
            draft.replace(params, f"[*{given}, {', '.join(named['params'])}]")
            return
    raise NoPatch(f"where line {call.lineno} builds the optimizer, what it lacks has no name")


def _has_groups(params: ast.expr) -> bool:
    return isinstance(params, (ast.List, ast.Tuple)) and any(isinstance(e, ast.Dict) for e in params.elts)


def _covers(node: ast.AST, line: int) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and node.lineno <= line <= (node.end_lineno or 0)


def _same_class(draft: Draft, scope: ast.AST, scopes: list[ast.AST]) -> bool:
    parent = draft.script.parent(scope)
    return isinstance(parent, ast.ClassDef) and any(draft.script.parent(s) is parent for s in scopes)


def _known_before(expressions: list[str], scope: ast.AST, tree: ast.Module, line: int) -> bool:
    """Whether the names in which the expressions begin have a value when this line runs."""
    wanted = set[str]().union(*(_loaded(ast.parse(f"[{e}]")) for e in expressions))
    given = getattr(scope, "args", None)
    known = {a.arg for a in [*given.posonlyargs, *given.args, *given.kwonlyargs]} if given else set[str]()
    for within in (scope, tree):
        stmts = within.body if isinstance(within.body, list) else []  # type: ignore[attr-defined]
        for stmt in stmts:
            if stmt.lineno < line and not isinstance(stmt, (ast.FunctionDef, ast.ClassDef)):
                known |= _stored(stmt)
    return wanted <= known
