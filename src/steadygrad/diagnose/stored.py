"""A diagnosis from a run directory: the facts go into the trace as JSON, and come back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

from steadygrad.diagnose.causes import diagnose
from steadygrad.diagnose.course import Course
from steadygrad.diagnose.facts import RECURRENT, Facts
from steadygrad.diagnose.verdict import judge
from steadygrad.records import Action, Cause, Finding, FirstNonFinite, Portrait
from steadygrad.trace.jsontext import number
from steadygrad.trace.reader import Run

MAX_ROWS = 200  # layers of one portrait that are kept
EVENT = "facts"


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a run directory says went wrong."""

    causes: tuple[Cause, ...]  # empty: nothing did
    findings: tuple[Finding, ...]
    actions: tuple[Action, ...]
    verdict: str  # a sentence
    first_nonfinite: FirstNonFinite | None
    steps: int
    notes: tuple[str, ...] = ()  # what is missing: a damaged or unfinished trace


def diagnose_run(path: Path | str) -> Diagnosis:
    """Diagnose a run from its directory, finished or not.

    A run whose end was never written (killed, still going) is judged by the losses that reached the disk.

    Raises:
        NotARun: there is no trace at ``path``.
    """
    run = Run(path)
    stored = [e for e in run.events() if e.kind == EVENT]
    ended = [e for e in stored if e.payload.get("end")]
    newest = (ended or stored)[-1:]
    facts = facts_of_json(newest[0].payload.get("facts")) if newest else Facts()
    notes = list(run.notes)
    if not ended:
        notes.append("the end of this run was not recorded: it was killed, or is still going")
    verdict = facts.verdict
    if not ended or verdict is None:
        portraits = [p for p in (facts.portrait, facts.at) if p is not None]
        verdict = judge(Course(_losses(run)), portraits, optimizers=max(1, len(run.optimizers())))
        facts = dataclasses.replace(facts, verdict=verdict)
    findings, actions = tuple(run.findings()), tuple(run.actions())
    return Diagnosis(
        causes=tuple(diagnose(findings, facts, acted=bool(actions))),
        findings=findings,
        actions=actions,
        verdict=verdict.reason,
        first_nonfinite=facts.located,
        steps=facts.steps or len(run.scalar("applied")[0]),
        notes=tuple(dict.fromkeys(notes)),
    )


def _losses(run: Run) -> list[float]:
    """Per backward call, as a case file has them."""
    passes = dict(zip(*(a.tolist() for a in run.scalar("num_backwards")), strict=True))
    steps, losses = run.scalar("loss")
    return [
        loss / max(1.0, passes.get(step, 1.0))
        for step, loss in zip(steps.tolist(), losses.tolist(), strict=True)
    ]


def facts_to_json(facts: Facts) -> dict[str, Any]:
    """The facts as plain data. Of a large model a share of the parameters and layers is kept."""
    told = [p for p in facts.params if p.module_type in RECURRENT]
    matrices = [p for p in facts.params if len(p.shape) >= 2]
    dtypes = {p.dtype: p for p in facts.params}
    params = tuple(dict.fromkeys([*told[:MAX_ROWS], *matrices[:MAX_ROWS], *dtypes.values()]))

    def thinned(portrait: Portrait) -> Portrait:
        every = max(1, -(-len(portrait.layers) // MAX_ROWS))
        return dataclasses.replace(portrait, layers=portrait.layers[::every])

    values = {f.name: getattr(facts, f.name) for f in dataclasses.fields(facts)}
    portraits: dict[str, Any] = {k: thinned(v) for k, v in values.items() if isinstance(v, Portrait)}
    return dataclasses.asdict(dataclasses.replace(facts, params=params, **portraits))


def facts_of_json(data: Any) -> Facts:
    """The inverse of :func:`facts_to_json`. What cannot be read is left unknown, never guessed."""
    facts = of_json(Facts, data)
    return facts if isinstance(facts, Facts) else Facts()


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def of_json(kind: Any, value: Any) -> Any:
    """A value of this type from JSON; None where it does not fit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return None if value is None else of_json(inner[0], value)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else ()
        each = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        if each is None:
            return tuple(map(of_json, args, items)) if len(items) == len(args) else None
        return tuple(v for v in (of_json(each, item) for item in items) if v is not None)
    if origin is Literal:
        return value if value in args else None
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {str(k): number(v) for k, v in value.items()} if isinstance(value, Mapping) else {}
    if dataclasses.is_dataclass(kind):
        return _record(kind, value)
    if kind is float:
        return number(value)
    if kind in (int, bool, str):
        return value if isinstance(value, kind) else kind()
    return value


def _record(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return None
    hints = _hints(kind)
    known = {
        f.name: of_json(hints[f.name], value[f.name]) for f in dataclasses.fields(kind) if f.name in value
    }
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in known
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    strange = [name for name, v in known.items() if v is None and typing.get_origin(hints[name]) is Literal]
    return None if missing or strange else kind(**known)
