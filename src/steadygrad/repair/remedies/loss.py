"""Losses that are given something else than they want."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.effects.loss_calls import FIXES
from steadygrad.repair.remedy import Remedy

FAILED = 0.6  # lead: of the yardstick, at most

ADVICE = {
    "softmax_before_cross_entropy": "give the cross entropy the logits, and take the softmax for predictions only",
    "sigmoid_before_cross_entropy": "give the cross entropy the logits, and take the sigmoid for predictions only",
    "sigmoid_before_bce_logits": "give binary_cross_entropy_with_logits the logits: it has a sigmoid of its own",
    "nll_without_log_softmax": "use cross_entropy on the logits in place of nll_loss",
    "one_unit_softmax": "use a sigmoid and a binary cross entropy for one unit, or two units",
    "broadcast_in_loss": "give prediction and target the same shape: prediction.squeeze(-1) or target.unsqueeze(-1)",
}
INTRUSIVENESS = {"broadcast_in_loss": 0.05}


def loss_calls(case: Case) -> Iterator[Remedy]:
    """One remedy for each mistake that the graph of the loss has shown."""
    portraits = (case.facts.portrait, case.facts.at, case.facts.last)
    kinds = dict.fromkeys(o.kind for p in portraits if p is not None for o in p.oddities if o.kind in FIXES)
    for kind in kinds:
        yield Remedy(
            name=kind.replace("_", " ") + ", put right",
            plan={"loss_calls": [kind]},
            serves=("loop_mistake",),
            safety="surgery",
            intrusiveness=INTRUSIVENESS.get(kind, 0.08),
            advice=ADVICE[kind],
            lead=FAILED,
            family=kind,
        )
