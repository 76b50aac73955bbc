"""Activations that let the gradient through, and outputs that can reach their targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steadygrad.repair.case import Case
from steadygrad.repair.remedies._layers import SQUASHING, named, plain
from steadygrad.repair.remedy import Remedy

DOUBLED = (
    "softmax_before_cross_entropy",
    "sigmoid_before_cross_entropy",
    "sigmoid_before_bce_logits",
    "bounded_output",
)
KINDS = {
    "Softmax": "Softmax",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Relu": "ReLU",
}  # of a term, and of a module
LIKELY = 0.1
LIMIT = 1.0


def other_activation(case: Case) -> Iterator[Remedy]:
    """LeakyReLU and GELU for ReLU; ReLU, GELU and SELU for units that saturate. Gates and outputs stay."""
    serves = ("vanishing", "saturation", "dead_units")
    if case.exploded and not any(case.probability(cause) > LIKELY for cause in serves):
        return
    for kinds, others, causes in (
        (("ReLU",), ("LeakyReLU", "GELU"), ("dead_units", "vanishing")),
        (SQUASHING, ("ReLU", "GELU", "SELU"), ("vanishing", "saturation")),
    ):
        chosen = _of_kinds(case, "hidden", kinds)
        for other in others if chosen else ():
            yield Remedy(
                name=f"{other} for {' and '.join(_found(chosen))}",
                plan={"activation": {"to": other, **_plan(chosen)}},
                serves=causes,
                safety="surgery",
                intrusiveness=0.4,
                advice=f"use torch.nn.{other} at {_where(chosen)}",
                family="activation",
            )


def remove_output_activation(case: Case) -> Iterator[Remedy]:
    """No activation in front of a loss that has one, or of targets that it cannot reach."""
    portrait = case.facts.portrait
    if portrait is None or not any(oddity.kind in DOUBLED for oddity in portrait.oddities):
        return
    kinds = tuple({KINDS[term.output]: None for term in portrait.terms if term.output in KINDS})
    chosen = _of_kinds(case, "output", kinds)
    if chosen:
        yield Remedy(
            name=f"output without {' and '.join(_found(chosen))}",
            plan={"remove_output_activation": _plan(chosen)},
            serves=("saturation", "output_scale", "vanishing", "unscaled_targets"),
            safety="surgery",
            intrusiveness=0.2,
            advice=f"leave out the activation at {_where(chosen)}: the loss is to be given what is in front of it",
            lead=0.6,
            family="output activation",
        )


def revive_units(case: Case) -> Iterator[Remedy]:
    """Biases that bring dead units back, or keep them alive."""
    if not case.probability("dead_units") > LIKELY:
        return
    paths = [layer["module"] for layer in plain(case) if layer["bias"] and layer["activation"] == "relu"]
    if not paths:
        return
    yield Remedy(
        name="dead units centred",
        plan={"dead_unit_reset": {"modules": paths}},
        serves=("dead_units",),
        safety="surgery",
        intrusiveness=0.3,
        advice=f"take the mean of units of {named(paths)} that are negative on whole batches off their biases",
        family="biases",
    )
    yield Remedy(
        name=f"biases within {LIMIT:g}",
        plan={"bias_clamp": {"modules": paths, "limit": LIMIT}},
        serves=("dead_units",),
        safety="surgery",
        intrusiveness=0.25,
        advice=f"clamp the biases of {named(paths)} to {LIMIT:g} after each optimizer.step()",
        family="biases",
    )


Places = list[tuple[str, Any]]  # kind, and the path of a module or the call


def _of_kinds(case: Case, place: str, kinds: tuple[str, ...]) -> Places:
    found = case.survey.get("structure", {}).get("activations", {}).get(place, {})
    modules = [(kind, path) for path, kind in found.get("modules", {}).items() if kind in kinds]
    return [*modules, *((call["kind"], call) for call in found.get("calls", ()) if call["kind"] in kinds)]


def _plan(chosen: Places) -> dict[str, Any]:
    return {
        "modules": [at for _, at in chosen if isinstance(at, str)],
        "calls": [at for _, at in chosen if not isinstance(at, str)],
    }


def _found(chosen: Places) -> list[str]:
    return list(dict.fromkeys(kind for kind, _ in chosen))


def _where(chosen: Places) -> str:
    return named(at if isinstance(at, str) else f"{at['file']}:{at['line']}" for _, at in chosen)
