"""Operations that made a NaN or an infinity, in a form that does not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from steadygrad.records import FirstNonFinite
from steadygrad.repair.case import Case
from steadygrad.repair.effects.safe import FORMS
from steadygrad.repair.remedy import Remedy

FAILED = 0.6  # lead: of the yardstick, at most
# What the operations of torch's functions are called further inside.
INSIDE = frozenset(
    "nll_loss2d cross_entropy_loss ctc_loss std_mean var_mean scaled_dot_product_attention".split()
)
NONFINITE = ("L100", "G100", "A100", "P100")
SERVES = ("unsafe_op", "bad_batch")

CHANGES = {  # in the user's code; of other operations the general one
    "log": "take the log of scores: log_softmax, logsigmoid or a loss with logits; or clamp(min=1e-6) before the log",
    "sqrt": "add a small number under the root, sqrt(x + 1e-12): its derivative at 0 is infinite",
    "pow": "add a small number to the base: the derivative at 0 is infinite",
    "div": "give the quotient a value where the divisor is 0: torch.where(d == 0, 0, x / torch.where(d == 0, 1, d))",
    "exp": "bound the exponent before exp: clamp(max=20)",
    "softmax": "do not mask a whole row with -inf: use a large negative number, or leave such samples out",
    "nll_loss": "leave out batches of which every label is ignored",
    "acos": "clamp(-1 + 1e-6, 1 - 1e-6) before it: the derivative at 1 is infinite",
}
ALIKE = {"log2": "log", "log10": "log", "log1p": "log", "reciprocal": "div", "asin": "acos", "rsqrt": "sqrt"}
GENERAL = "keep the operation away from the end of its domain with a clamp or a small number"


def safe_operations(case: Case) -> Iterator[Remedy]:
    """At the line that was found, and everywhere."""
    located = case.facts.located
    if located is None and not case.has(*NONFINITE):
        return
    known = located is not None and located.kind != "data"
    op = located.op if located is not None and known else ""
    has_form = op in FORMS or op in INSIDE
    lead = FAILED if (has_form or located is None) and not case.facts.had_grown else None
    change = CHANGES.get(ALIKE.get(op, op), GENERAL)
    if located is not None and known and located.line:
        yield Remedy(
            name=f"safe {op} at {_place(located)}",
            plan={"safe_ops": {"sites": [_site(located)]}},
            serves=SERVES,
            safety="exact",
            intrusiveness=0.08,
            advice=f"{_place(located)}: {change}",
            lead=lead,
            family="safe operations",
        )
    yield Remedy(
        name="safe operations everywhere",
        plan={"safe_ops": {"everywhere": True}},
        serves=SERVES,
        safety="exact",
        intrusiveness=0.1,
        advice=f"{_place(located)}: {change}" if has_form and located is not None else change,
        lead=lead,
        family="safe operations",
    )


def links(case: Case) -> Iterator[Remedy]:
    """A log of negative values wants a probability and is given any number."""
    located = case.facts.located
    if (
        located is None
        or not located.line
        or not located.op.startswith("log")
        or "negative" not in located.detail
    ):
        return
    for function, instead in (
        ("logsigmoid", "binary_cross_entropy_with_logits (or F.logsigmoid)"),
        ("log_softmax", "cross_entropy (or F.log_softmax)"),
    ):
        yield Remedy(
            name=f"{function} at {_place(located)}",
            plan={"safe_ops": {"sites": [_site(located) | {"as": function}]}},
            serves=("unsafe_op", "loop_mistake"),
            safety="surgery",
            intrusiveness=0.2,
            advice=f"{_place(located)}: the log is given numbers that are no probabilities: use {instead} on them",
            lead=FAILED,
            family="safe operations",
        )


def _site(located: FirstNonFinite) -> dict[str, object]:
    return {"file": located.file, "line": located.line, "op": located.op}


def _place(located: FirstNonFinite | None) -> str:
    return (
        f"{os.path.basename(located.file)}:{located.line}"
        if located is not None and located.line
        else "the code"
    )
