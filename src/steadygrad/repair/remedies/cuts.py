"""Gradients that are cut off in the user's code, above parameters that are to be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

FAILED = 0.6
MOST = 3  # cuts
ADVICE = {
    "detach": "take detach() out of {file}, line {line}",
    "data": "take .data out of {file}, line {line}",
    "no_grad": "take no_grad out of {file}, line {line}",
}


def pass_gradients(case: Case) -> Iterator[Remedy]:
    """Each cut above parameters without any gradient, and all of them together.

    There is evidence for the cuts above which no parameter at all is trained: what stops gradients on purpose has
    parameters below that get theirs on another way, or that somebody moves by hand.
    """
    if not case.has("M105"):
        return
    sites = case.survey.get("cuts", {}).get("sites", ())
    guilty = sorted((s for s in sites if s["reaches"] and s["untrained"]), key=lambda s: -s["untrained"])[
        :MOST
    ]
    evident = [] if case.targets_move else [s for s in guilty if s["untrained"] == s["parameters"]]
    for site in guilty:
        yield _remedy([site], evident)
    if len(guilty) > 1:
        yield _remedy(guilty, evident)


def _remedy(sites: Sequence[Mapping[str, Any]], evident: Sequence[Mapping[str, Any]]) -> Remedy:
    places = [{"file": s["file"], "line": s["line"], "op": s["op"]} for s in sites]
    where = ", ".join(f"{p['file']}:{p['line']} ({p['op']})" for p in places)
    return Remedy(
        name=f"gradients pass {where}",
        plan={"pass_gradients": {"sites": places}},
        serves=("loop_mistake",),
        safety="surgery",
        intrusiveness=0.15 + 0.01 * (len(sites) - 1),
        advice="; ".join(ADVICE[p["op"]].format(**p) for p in places) + ": no gradient passes there",
        lead=FAILED if list(sites) == list(evident) else None,
        family="pass_gradients",
    )
