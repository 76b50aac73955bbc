"""What the survey says of the layers, as remedies ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from steadygrad.repair.case import Case

Layer = dict[str, Any]
SQUASHING = ("Sigmoid", "Tanh", "Hardtanh", "Hardsigmoid", "Softsign")
RECTIFYING = ("relu", "leaky_relu", "relu6", "elu", "selu", "gelu", "gelu_tanh", "silu", "mish", "softplus")
FEWEST = 3  # units: of two, a norm leaves only which is the larger


def layers(case: Case) -> list[Layer]:
    """All weights at work, in order of execution; none if the run could not be surveyed."""
    return list(case.survey.get("structure", {}).get("layers", ()))


def plain(case: Case) -> list[Layer]:
    """Trained linear layers and convolutions of torch that no recurrence uses."""
    return [layer for layer in layers(case) if layer["plain"] and layer["trained"] and not layer["recurrent"]]


def loaded(case: Case) -> bool:
    """Whether weights came from a checkpoint: they are not drawn anew."""
    return bool(case.survey.get("structure", {}).get("loaded"))


def without_norm(case: Case) -> list[Layer]:
    """Those of them between input and output that no norm follows, and that make no queries or keys."""
    return [
        layer
        for layer in plain(case)
        if not (layer["head"] or layer["normed"] or layer["attention"]) and layer["width"] >= FEWEST
    ]


def branch_ends(case: Case) -> list[str]:
    """The modules of the last layers of residual branches."""
    # Where attention has no projection behind it, its values end the branch; queries and keys never do.
    may = {
        layer["module"]
        for layer in plain(case)
        if not layer["tied"] and not set(layer["attention"]) & {"query", "key"}
    }
    branches = case.survey.get("structure", {}).get("branches", ())
    return list(dict.fromkeys(path for branch in branches for path in branch["ends"] if path in may))


def named(paths: Iterable[str]) -> str:
    """For people: the first few of many."""
    paths = list(paths)
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
