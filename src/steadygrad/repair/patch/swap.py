"""Another optimizer of torch in the place of the one that is built."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.rates import CYCLES
from steadygrad.repair.patch.script import NoPatch, argument, last_name
from steadygrad.repair.patch.targets import built
from steadygrad.repair.patch.values import literal

RELATIVE = (
    "LambdaLR", "MultiplicativeLR", "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR",
    "SequentialLR", "ChainedScheduler",
)  # fmt: skip
"""Schedulers whose rates are a multiple of the optimizer's own, whatever that is."""


def optimizer(draft: Draft, value: Mapping[str, Any]) -> None:
    """The constructor's name and its arguments but for the parameters."""
    settings = {k: v for k, v in value.items() if k != "name"}
    factor = float(draft.plan.get("lr_factor", 1.0))
    for site in built(draft):
        script, call = draft.script, site.call
        params = argument(call, "params", 0)
        if params is None:
            raise NoPatch(f"line {call.lineno} builds the optimizer from parameters that cannot be read off")
        if site.facts["lr_set_by_hand"]:
            raise NoPatch(
                "the script sets the rate of its optimizer itself, which would have to become another"
            )
        cycled = _one_cycle(draft, site.facts["schedulers"], settings["lr"] * factor)
        bounded = [
            s for s in site.facts["schedulers"] if s["class"] not in (*RELATIVE, *CYCLES) and _bounded(s)
        ]
        if bounded or site.schedules("CyclicLR") or (site.schedules("OneCycleLR") and not cycled):
            kind = site.facts["schedulers"][0]["class"]
            raise NoPatch(f"{kind} has rates of its own, which would have to become others")
        if _groups_have_settings(params):
            raise NoPatch(
                "the parameter groups have settings of their own, which would have to become others"
            )
        if isinstance(call.func, ast.Attribute) and last_name(call.func.value) == "optim":
            draft.replace(call.func, f"{script.text(call.func.value)}.{value['name']}")
        else:
            draft.needs.add("torch")
            draft.replace(call.func, f"torch.optim.{value['name']}")
        given = {**settings, "lr": settings["lr"] * factor}
        text = ", ".join(f"{k}={_text(v)}" for k, v in given.items())
        _replace_arguments(draft, call, params, text)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_text(v) for v in value)})"
    return literal(float(value)) if type(value) in (int, float) else repr(value)


def _bounded(schedule: Mapping[str, Any]) -> bool:
    values = [schedule.get(name, 0) for name in ("eta_min", "min_lrs")]
    return any(v for value in values for v in (value if isinstance(value, (list, tuple)) else [value]))


def _groups_have_settings(params: ast.expr) -> bool:
    return isinstance(params, ast.List) and any(
        isinstance(e, ast.Dict) and len(e.keys) > 1 for e in params.elts
    )


def _one_cycle(draft: Draft, schedulers: Any, lr: float) -> bool:
    """Give OneCycleLR the new rate as its highest."""
    if [s["class"] for s in schedulers] != ["OneCycleLR"]:
        return False
    calls = [c for c in draft.script.nodes(ast.Call) if last_name(c.func) == "OneCycleLR"]
    most = argument(calls[0], "max_lr", 1) if len(calls) == 1 else None
    if most is None or isinstance(most, (ast.List, ast.ListComp)):
        return False
    draft.replace(most, literal(lr))
    return True


def _replace_arguments(draft: Draft, call: ast.Call, params: ast.expr, text: str) -> None:
    """All behind the parameters, and all before them if they are given by name."""
    script = draft.script
    given = sorted([*call.args, *(k for k in call.keywords)], key=script.start)
    at = next(i for i, a in enumerate(given) if a is params or getattr(a, "value", None) is params)
    if at > 0:
        raise NoPatch(f"line {call.lineno} gives the optimizer its settings before its parameters")
    start, end = script.end(given[0]), script.end(call) - 1
    rest = script.data[start:end].decode()
    if "#" in rest:
        raise NoPatch(f"line {call.lineno} has remarks among the settings of the optimizer")
    closing = rest.split(",", 1)[0] if "," in rest else ""  # a parenthesis that closes the parameters' own
    draft.cut(start, end, f"{closing.rstrip()}, {text}{rest[len(rest.rstrip()) :] if len(given) > 1 else ''}")
