"""Norms where there are none."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedies._layers import named, without_norm
from steadygrad.repair.remedy import Remedy

SERVES = (
    "residual_accumulation",
    "init_gain_large",
    "init_gain_small",
    "vanishing",
    "saturation",
    "dead_units",
    "unscaled_inputs",
)
FEW = 8  # targets in a batch: too few to normalise over


def insert_norms(case: Case) -> Iterator[Remedy]:
    """Layer norm, and batch norm where batches allow it, behind the hidden layers."""
    chosen = without_norm(case)
    if not chosen:
        return
    paths = [layer["module"] for layer in chosen]
    yield Remedy(
        name="layer norm",
        plan={"layer_norm": {"modules": paths}},
        serves=SERVES,
        safety="surgery",
        intrusiveness=0.45,
        advice=f"put torch.nn.LayerNorm (GroupNorm(1, ..) after convolutions) behind {named(paths)}",
        family="norm",
    )
    portrait = case.facts.portrait
    elements = [term.elements for term in portrait.terms] if portrait is not None else []
    single = [
        layer["module"] for layer in chosen if layer["uses"] == 1
    ]  # steps of time have statistics of their own
    if single and max(elements, default=FEW) >= FEW:
        yield Remedy(
            name="batch norm",
            plan={"batch_norm": {"modules": single}},
            serves=SERVES,
            safety="surgery",
            intrusiveness=0.5,
            advice=f"put torch.nn.BatchNorm1d (BatchNorm2d after convolutions) behind {named(single)}",
            family="norm",
        )
