"""An optimizer that does not hold what is trained."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedies.loop import FAILED
from steadygrad.repair.remedy import Remedy


def own_parameters(case: Case) -> Iterator[Remedy]:
    """Parameters get a gradient and no optimizer moves them."""
    models = case.survey.get("unowned", {}).get("models", ())
    if not models or not case.has("M105"):
        return
    kinds = {model["kind"] for model in models}
    count = sum(model["count"] for model in models)
    yield Remedy(
        name=f"{count} parameters to the optimizer",
        plan={"own_parameters": 1},
        serves=("loop_mistake",),
        safety="exact" if kinds == {"copy"} else "tuning",
        intrusiveness=0.05,
        advice="give the optimizer every parameter that is trained"
        if "forgotten" in kinds
        else "build the optimizer after the model is complete, from the model that runs",
        lead=None if "forgotten" in kinds else FAILED,
    )
