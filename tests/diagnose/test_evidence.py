"""Which evidence speaks for which cause, on facts made by hand: one line each of what the votes promise."""

import math

import pytest

from steadygrad.diagnose import diagnose, rank_causes
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.verdict import Verdict
from steadygrad.records import (
    AttentionStats,
    Finding,
    FirstNonFinite,
    LayerStats,
    LossTerm,
    ParamInfo,
    Portrait,
    RecurrenceStats,
)

NAN = math.nan
LAYERS = tuple(LayerStats(f"l{i}", "Addmm", 1, 1.0, 3.0, NAN, 1.0, "float32") for i in range(4))
CLASSES = LossTerm("cross_entropy", 2.3, 2.3, 1.0, "mean", 32, 1.0, NAN, NAN, NAN, classes=10)
NUMBERS = LossTerm("mse", 1.0, 1.0, 1.0, "mean", 32, 1.0, 1.0, 0.0, 1.0)
FIRST = Portrait(layers=LAYERS, terms=(CLASSES,), nodes=40)


def verdict(kind, progress=NAN):
    return Verdict(kind, progress, 2.3, 2.3, NAN, kind)


def found(code, step=0, severity="info", **evidence):
    return Finding(code, "rule", step, "l1", f"{code} speaks", evidence, severity)


def first(findings, **facts):
    facts.setdefault("portrait", FIRST)
    facts.setdefault("at", facts["portrait"])
    ranked = rank_causes(findings, Facts(**facts))
    return ranked[0].cause if ranked else None


def located(kind, op="log", detail="log of 0"):
    return FirstNonFinite(40, kind, "head", op, "train.py", 7, 40, None, "nan", detail)


RECURRENT = Portrait(
    layers=LAYERS, terms=(CLASSES,), recurrences=(RecurrenceStats("w_hh", 80, 0.1, 6.0, 1.0, 2.0),)
)
RESIDUAL = Portrait(layers=LAYERS, terms=(CLASSES,), residual=12, nodes=90)
SUMMED = Portrait(
    layers=LAYERS, terms=(LossTerm("cross_entropy", 2.3, 2.3, 256.0, "sum", 256, 1, NAN, NAN, NAN),)
)
OUTLIER = Portrait(
    layers=(LayerStats("l0", "Addmm", 1, 900.0, 3e4, NAN, 1.0, "float32"), *LAYERS[1:]), terms=(CLASSES,)
)
ATTENTION = Portrait(layers=LAYERS, terms=(CLASSES,), attention=(AttentionStats("q", 90.0, 0.1, 64),))
GROWING = Portrait(
    layers=LAYERS, terms=(LossTerm("mse", 9e3, NAN, 1.0, "mean", 32, 90.0, 120.0, 120.0, 1.0),)
)
NORMAL = {
    "healthy_steps": 40,
    "loss_first": 2.3,
    "loss_before": 1.0,
    "loss_last": 1.0,
    "norm_before": 1.0,
    "norm_last": 1.0,
}
BROKE = [found("L100", 40, "alarm"), found("G100", 40, "alarm")]

EXAMPLES = [
    ("init_gain_large", [found("F101", decades=8.0, jump=0.6), found("F102", decades=8.0)], {}),
    ("output_scale", [found("F101", decades=2.5, jump=2.4, head=1.0), found("F106")], {}),
    ("residual_accumulation", [found("F101", decades=3.0, jump=0.3)], {"portrait": RESIDUAL}),
    ("lr_too_large", [found("F101", step=2, decades=8.0, jump=0.6)], {"verdict": verdict("exploded")}),
    ("vanishing", [found("F103", decades=6.0, forward_decades=0.0)], {"module_types": ("Sigmoid",)}),
    ("init_gain_small", [found("F103", decades=6.0, forward_decades=-5.0)], {}),
    ("init_gain_small", [found("F109")], {"verdict": verdict("stuck", 0.0)}),
    ("recurrent_growth", [found("F104", decades=6.0)], {"portrait": RECURRENT}),
    ("attention_logit_growth", [found("F105")], {"portrait": ATTENTION}),
    ("unscaled_inputs", [found("D101")], {"input_rms": 120.0, "verdict": verdict("stuck", 0.0)}),
    ("unscaled_targets", [found("F108")], {}),
    ("loss_reduction", [found("M110"), found("L101", 4, "alarm")], {"portrait": SUMMED}),
    ("loop_mistake", [found("M101", 2, "warning"), found("L101", 9, "alarm"), found("L104", 30, "warning")], {}),
    ("loop_mistake", [found("M108", 0, "warning")], {"verdict": verdict("stuck", 0.0)}),
    ("low_precision", BROKE, {"located": located("forward", "to_copy", "overflows float16"), **NORMAL}),
    ("low_precision", BROKE, {"params": (ParamInfo(0, "w", (2, 2), "float16", 0, "", ""),), "eps": 1e-8, "half": True}),
    ("unsafe_op", BROKE, {"located": located("forward"), **NORMAL}),
    ("bad_batch", BROKE, {"located": located("data", "input", "nan in the batch"), **NORMAL}),
    ("bad_batch", [found("L101", 40, "alarm")], {"at": OUTLIER, "last": FIRST, "one_step_only": True, **NORMAL}),
    ("data_shift", [found("L101", 40, "alarm")], {"at": OUTLIER, "last": OUTLIER, **NORMAL}),
    ("lr_too_small", [], {"verdict": verdict("stuck", 0.0), "update_ratio": 1e-9, "norm_before": 1.0}),
    ("unbounded_objective", [], {"verdict": verdict("unbounded")}),
    (
        "bootstrapped_target",
        [found("L104", 90, "warning")],
        {"portrait": Portrait(layers=LAYERS, terms=(NUMBERS,)), "last": GROWING, "verdict": verdict("exploded")},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "cause, findings, facts", EXAMPLES, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(EXAMPLES)]
)
def test_first_cause(cause, findings, facts):
    assert first(findings, **facts) == cause


@pytest.mark.parametrize(
    "cause, findings, facts", EXAMPLES, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(EXAMPLES)]
)
def test_a_run_that_learned_has_none(cause, findings, facts):
    """Unless somebody had to act or to be told."""
    quiet = [f for f in findings if f.severity == "info"]
    assert diagnose(quiet, Facts(**{"portrait": FIRST, **facts, "verdict": verdict("learned", 0.9)})) == []


def test_what_is_ruled_out_is_not_named():
    """No recurrence, no attention, nothing in float16, targets that are classes: four causes less."""
    names = {c.cause for c in rank_causes(BROKE, Facts(portrait=FIRST, at=FIRST, **NORMAL))}
    assert not names & {"recurrent_growth", "attention_logit_growth", "low_precision", "unscaled_targets"}


def test_probabilities_leave_room_for_none_of_these():
    for _, findings, facts in EXAMPLES:
        ranked = rank_causes(findings, Facts(**{"portrait": FIRST, **facts}))
        assert 0 < sum(c.probability for c in ranked) < 1
        assert ranked == sorted(ranked, key=lambda c: (-c.probability, c.cause))
