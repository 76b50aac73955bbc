"""Attention whose logits stay bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedies._layers import layers, named
from steadygrad.repair.remedy import Remedy

USUAL = 4.0  # largest logit of a net that has not been trained
HUGE = 100.0  # logit at the start: a softmax is one key, and no gradient passes it
LARGE = 10.0  # logit at the start, from which a softmax is nearly one key
CAP = 50.0  # Gemma 2's
CAUSE = "attention_logit_growth"


def bounded_attention(case: Case) -> Iterator[Remedy]:
    """QK-norm, a soft cap, and the factor 1 / sqrt(d) where it was forgotten."""
    portrait = case.facts.portrait
    seen = portrait.attention if portrait is not None else ()
    if not seen and not any(layer["attention"] for layer in layers(case)):
        return
    unscaled = list(case.survey.get("structure", {}).get("unscaled_attention", ()))
    if unscaled:
        yield Remedy(
            name="attention logits / sqrt(d)",
            plan={"qk_scale": {"modules": unscaled}},
            serves=(CAUSE, "init_gain_large", "saturation"),
            safety="surgery",
            intrusiveness=0.2,
            advice=f"divide the product of queries and keys in {named(p or 'the model' for p in unscaled)} by sqrt(d)",
            lead=0.6 if any(row.max_logit > LARGE for row in seen) else None,
            family="attention",
        )
    largest = max((row.max_logit for row in seen), default=0.0)
    makers: dict[tuple[str, ...], list[str]] = {}
    for layer in layers(case):
        makers.setdefault(tuple(sorted(layer["attention"])), []).append(layer["module"])
    apart = [path for role in (("query",), ("key",)) for path in makers.get(role, ())]
    fused = makers.get(("key", "query", "value"), [])
    if LARGE < largest < math.inf and apart + fused:
        factor = float(f"{math.sqrt(USUAL / largest):.2g}")
        yield Remedy(
            name=f"queries and keys x {factor:g}",
            plan={"query_key_scale": {"modules": apart + fused, "fused": fused, "factor": factor}},
            serves=(CAUSE, "init_gain_large", "saturation"),
            safety="surgery",
            intrusiveness=0.25,
            advice=f"start the weights of queries and keys {1 / factor:.3g} times smaller",
            lead=0.6 if largest > HUGE else None,
            family="attention",
        )
    yield Remedy(
        name=f"attention logits capped at {CAP:g}",
        plan={"soft_cap": {"cap": CAP}},
        serves=(CAUSE,),
        safety="surgery",
        intrusiveness=0.3,
        advice=f"call steadygrad.nn.soft_cap(model, cap={CAP:g}) before training",
        family="attention",
    )
    yield Remedy(
        name="QK-norm",
        plan={"qk_norm": {}},
        serves=(CAUSE, "saturation"),
        safety="surgery",
        intrusiveness=0.35,
        advice="call steadygrad.nn.qk_norm(model, batch, per_dim=False) before the optimizer is built",
        family="attention",
    )
