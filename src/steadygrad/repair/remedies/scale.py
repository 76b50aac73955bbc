"""Data of a size that the model can work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steadygrad.repair.case import Case
from steadygrad.repair.remedy import Remedy

LARGE = 10.0  # rms
UNEQUAL = 100.0  # largest deviation of a column over the smallest
FAILED = 0.15  # lead: of the yardstick, at most; scaling helps a little everywhere
INPUTS, TARGETS = "unscaled_inputs", "unscaled_targets"
INPUT_FACTS, TARGET_FACTS = ("mean", "std", "axis"), ("mean", "std", "axis", "power")


def scaled_data(case: Case) -> Iterator[Remedy]:
    """Inputs standardised, targets standardised, and both; targets that the model makes have no scale of their own."""
    inputs = {} if case.facts.optimizers > 1 else _off(case.survey.get("inputs", {}))
    targets = {} if case.targets_move else _off(case.survey.get("targets", {}))
    if inputs:
        yield Remedy(
            name="inputs standardised",
            plan={"standardise_inputs": _plan(inputs, INPUT_FACTS)},
            serves=(INPUTS,),
            safety="surgery",
            intrusiveness=0.15,
            advice=_inputs_advice(inputs),
            lead=FAILED if _far(inputs) else None,
            family="data scale",
        )
    if targets:
        yield Remedy(
            name="targets standardised",
            plan={"scale_targets": _plan(targets, TARGET_FACTS)},
            serves=(TARGETS,),
            safety="surgery",
            intrusiveness=0.2,
            advice=_targets_advice(targets),
            lead=FAILED if _far(targets) else None,
            family="data scale",
        )
    if inputs and targets:
        yield Remedy(
            name="inputs and targets standardised",
            plan={
                "standardise_inputs": _plan(inputs, INPUT_FACTS),
                "scale_targets": _plan(targets, TARGET_FACTS),
            },
            serves=(INPUTS, TARGETS),
            safety="surgery",
            intrusiveness=0.3,
            advice=f"{_inputs_advice(inputs)}; {_targets_advice(targets)}",
            lead=FAILED if _far(inputs) or _far(targets) else None,
            family="data scale",
        )


Modules = Mapping[str, Mapping[str, Any]]


def _off(found: Mapping[str, Any]) -> Modules:
    """The layers whose data are not standardised already."""
    return {path: facts for path, facts in found.get("modules", {}).items() if not _standard(facts)}


def _standard(facts: Mapping[str, Any]) -> bool:
    means, stds = (v if isinstance(v, list) else [v] for v in (facts["mean"], facts["std"]))
    return all(abs(mean) < 0.5 * std and 0.5 < std < 2 for mean, std in zip(means, stds, strict=True))


def _far(modules: Modules) -> bool:
    return any(facts["rms"] > LARGE or facts["ratio"] > UNEQUAL for facts in modules.values())


def _plan(modules: Modules, names: tuple[str, ...]) -> dict[str, Any]:
    return {"modules": {path: {name: facts[name] for name in names} for path, facts in modules.items()}}


def _size(modules: Modules) -> str:
    largest = max(modules.values(), key=lambda facts: facts["rms"])
    spread = f", columns up to x{largest['ratio']:.3g} apart" if largest["ratio"] > LARGE else ""
    return f"rms {largest['rms']:.3g}{spread}"


def _inputs_advice(modules: Modules) -> str:
    return (
        f"standardise the inputs ({_size(modules)}) before the model: (x - mean) / std of the training data"
    )


def _targets_advice(modules: Modules) -> str:
    return (
        f"standardise the targets ({_size(modules)}) by mean and std of the training data, and turn predictions back: "
        "mean + std * prediction"
    )
