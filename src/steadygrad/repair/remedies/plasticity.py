"""Units that start anew in training, and loaded weights made able to learn again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steadygrad.repair.case import Case
from steadygrad.repair.remedies._layers import loaded, named
from steadygrad.repair.remedy import Remedy

LIKELY = 0.1  # probability of dead units
RESETS = 10  # in a run
EVERY = 100  # steps between two, if it is not known how long the run is
LEAST = 10
RATE = 1e-3  # of a layer's units a step: that of Dohare et al.'s shorter tasks
SHRINK, STD = 0.6, 0.01


def renew_units(case: Case) -> Iterator[Remedy]:
    """A new start for units that are dormant, at times, or for the least useful ones, all the time."""
    links = [list(pair) for pair in case.survey.get("structure", {}).get("links", ())]
    if not links or not case.probability("dead_units") > LIKELY:
        return
    paths = [path for path, _ in links]
    every = max(LEAST, case.facts.steps // RESETS) if case.facts.steps else EVERY
    yield _remedy(
        "dormant units start anew",
        {"dormant_reset": {"links": links, "threshold": 0.1, "every": every}},
        f"call step() of steadygrad.plasticity.DormantReset(model, optimizer, x, every={every}) after each "
        f"optimizer.step(): {named(paths)}",
    )
    yield _remedy(
        "continual backpropagation",
        {"continual_backprop": {"links": links, "replacement_rate": RATE, "maturity": min(100, every)}},
        f"call step() of steadygrad.plasticity.ContinualBackprop(model, optimizer, x, replacement_rate={RATE:g}) "
        f"after each optimizer.step(): {named(paths)}",
    )


def _remedy(name: str, plan: dict[str, Any], advice: str) -> Remedy:
    return Remedy(
        name=name,
        plan=plan,
        serves=("dead_units",),
        safety="surgery",
        intrusiveness=0.4,
        advice=advice,
        family="renewal",
    )


def shrink_and_perturb(case: Case) -> Iterator[Remedy]:
    """Loaded weights that no longer learn, made smaller and rougher."""
    if not loaded(case) or case.exploded:
        return
    yield Remedy(
        name=f"loaded weights x {SHRINK:g}, with noise",
        plan={"shrink_and_perturb": {"shrink": SHRINK, "std": STD, "seed": 0}},
        serves=("dead_units", "saturation", "vanishing", "init_gain_large"),
        safety="surgery",
        intrusiveness=0.35,
        advice=f"steadygrad.plasticity.shrink_and_perturb_(model, {SHRINK:g}, {STD:g}) behind load_state_dict",
        family="init",
    )
