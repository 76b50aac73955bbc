"""The parts of a script that are changed most: where its optimizers are built and step, and its losses run backward."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, last_name

PURE = (
    ast.Name,
    ast.Attribute,
    ast.Subscript,
    ast.Constant,
    ast.BinOp,
    ast.operator,
    ast.expr_context,
    ast.UnaryOp,
    ast.unaryop,
)


@dataclass(frozen=True)
class Built:
    """One optimizer of the run: what the survey knows of it, and the call that builds it."""

    facts: Mapping[str, Any]
    call: ast.Call

    def schedules(self, *kinds: str) -> bool:
        """Whether a scheduler of one of these classes moves it."""
        return any(s["class"] in kinds for s in self.facts["schedulers"])


@dataclass
class Stepping:
    """A call that makes an optimizer step: ``optimizer.step()`` or ``scaler.step(optimizer)``."""

    call: ast.Call
    stmt: ast.stmt
    optimizer: str
    scaler: str = ""  # as it is called there; "" if there is none
    closure: bool = False
    header: str = ""
    lines: list[str] = field(default_factory=list)


def used(draft: Draft) -> list[Mapping[str, Any]]:
    """What the survey knows of the optimizers that have stepped."""
    optimizers = [o for o in draft.survey.get("sites", {}).get("optimizers", ()) if o["steps"]]
    if not optimizers:
        raise NoPatch("it is not known where the optimizer is built and where it steps")
    return optimizers


def built(draft: Draft) -> list[Built]:
    """Where they are built; two that one line builds are there once.

    Raises:
        NoPatch: one of them is built elsewhere.
    """
    found: dict[ast.Call, Built] = {}
    for facts in used(draft):
        name = facts["class"]
        call = draft.script.call(facts["built"], lambda c, name=name: last_name(c.func) == name)  # type: ignore[misc]
        found.setdefault(call, Built(facts, call))
    return list(found.values())


def steppings(draft: Draft) -> list[Stepping]:
    """Where they step.

    Raises:
        NoPatch: one of them steps elsewhere, or by a call from which its name cannot be read.
    """
    found: dict[ast.Call, Stepping] = {}
    script = draft.script
    for facts in used(draft):
        for place in facts["steps"]:
            call = script.call(place, lambda c: last_name(c.func) == "step")
            if not isinstance(call.func, ast.Attribute):
                raise NoPatch(f"line {call.lineno} steps, and the name of its optimizer cannot be read there")
            owner = script.text(call.func.value)
            stepping = Stepping(call, script.statement(call), owner, closure=bool(call.args or call.keywords))
            if place["by"].endswith("GradScaler"):
                if not call.args:
                    raise NoPatch(
                        f"line {call.lineno} steps, and the name of its optimizer cannot be read there"
                    )
                stepping = Stepping(call, stepping.stmt, script.text(call.args[0]), owner)
            found.setdefault(call, stepping)
    return list(found.values())


def backwards(draft: Draft) -> list[tuple[ast.Call, ast.expr]]:
    """The calls that run a loss backward, each with the expression of the loss; a scaled one where it is scaled.

    Raises:
        NoPatch: one is elsewhere, or of several losses at once.
    """
    found = []
    for place in draft.survey.get("sites", {}).get("backward", ()):
        call = draft.script.call(place, lambda c: last_name(c.func) == "backward")
        if place["by"] == "Tensor" and isinstance(call.func, ast.Attribute):
            loss = call.func.value
        elif call.args and not isinstance(call.args[0], (ast.List, ast.Tuple, ast.Starred)):
            loss = call.args[0]
        else:
            raise NoPatch(f"line {call.lineno} runs several losses backward")
        if (call, loss) not in found:
            found.append((call, loss))
    if not found:
        raise NoPatch("it is not known where the loss runs backward")
    return found


def losses_before(draft: Draft, stepping: Stepping) -> list[str]:
    """The losses that have run backward when this step is reached, as far as they have names by then."""
    script, names = draft.script, []
    before = [
        s for node in (stepping.stmt, *script.above(stepping.stmt)) for s in _siblings_before(draft, node)
    ]
    assigned = {
        t.id for s in before if isinstance(s, ast.Assign) for t in s.targets if isinstance(t, ast.Name)
    }  # whatever branch has been taken
    for call, loss in backwards(draft):
        if isinstance(loss, ast.Call) and last_name(loss.func) == "scale" and len(loss.args) == 1:
            loss = loss.args[0]
        if script.scope(call) is not script.scope(stepping.call):
            continue
        pure = all(isinstance(n, PURE) for n in ast.walk(loss))
        always = any(script.statement(call) is s for s in before)
        if pure and always or isinstance(loss, ast.Name) and loss.id in assigned:
            names.append(script.text(loss))
    return list(dict.fromkeys(names))


def _siblings_before(draft: Draft, node: ast.AST) -> list[ast.stmt]:
    """The statements of the same block that come before."""
    parent = draft.script.parent(node)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and node in block:
            before: list[ast.stmt] = block[: block.index(node)]
            inside = [s for outer in before if isinstance(outer, ast.With) for s in outer.body]
            return [*before, *inside]
    return []


def model_at(draft: Draft, path: str) -> tuple[str, str, ast.stmt]:
    """A module of a plan: the expression of its model, its path in that, and the statement that builds the optimizer.

    Raises:
        NoPatch: the model has no name there.
    """
    models = draft.survey.get("sites", {}).get("models", ())
    of = [m for m in models if not m["prefix"] or path == m["prefix"] or path.startswith(m["prefix"] + ".")]
    if not of or not of[0]["name"]:
        raise NoPatch("where the optimizer is built, the model has no name")
    model = max(of, key=lambda m: len(m["prefix"]))
    twice = [
        m for m in models if m is not model and m["name"] == model["name"] and m["place"] == model["place"]
    ]
    if twice or not model["name"]:
        raise NoPatch("where the optimizers are built, the models have no names of their own")
    call = draft.script.call(model["place"], lambda c: True)
    return model["name"], path[len(model["prefix"]) :].removeprefix("."), draft.script.statement(call)
