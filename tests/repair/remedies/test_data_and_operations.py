from dataclasses import replace

import pytest

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.verdict import Verdict
from steadygrad.records import Cause, Finding, FirstNonFinite, Oddity, Portrait
from steadygrad.repair.case import Case
from steadygrad.repair.effects.change import Change
from steadygrad.repair.remedies.loss import loss_calls
from steadygrad.repair.remedies.operations import links, safe_operations
from steadygrad.repair.remedies.precision import precision
from steadygrad.repair.remedies.scale import scaled_data

LOG = FirstNonFinite(
    0, "forward", "o", "log", "train.py", 70, 0, None, "nan", "log of a negative value in 1 of 2 values"
)
NAN_LOSS = Finding("L100", "nonfinite_loss", 0, "loss", "the loss is nan", severity="alarm")
RAW = {"mean": [1.0, 50.0], "std": [1.0, 300.0], "axis": -1, "rms": 200.0, "ratio": 300.0}
PLAIN = {"mean": 0.1, "std": 0.9, "axis": -1, "rms": 0.9, "ratio": 1.2}
TARGETS = {"mean": 3.0, "std": 2.0, "axis": -1, "power": 2, "rms": 3.6, "ratio": 1.0}


def test_the_line_that_was_found_then_everywhere() -> None:
    at, everywhere = safe_operations(Case(Facts(located=LOG)))
    assert at.plan == {"safe_ops": {"sites": [{"file": "train.py", "line": 70, "op": "log"}]}}
    assert at.name == "safe log at train.py:70" and "log_softmax" in at.advice
    assert everywhere.plan == {"safe_ops": {"everywhere": True}}
    assert at.lead == everywhere.lead == 0.6 and at.safety == "exact"
    for remedy in (at, everywhere):
        Change(remedy.plan)


def test_no_evidence_for_the_operation_after_an_explosion_or_for_a_product() -> None:
    grown = Facts(located=LOG, loss_first=1.0, loss_last=1e9)
    assert [r.lead for r in safe_operations(Case(grown))] == [None, None]
    product = replace(LOG, op="mm", detail="")
    assert [r.lead for r in safe_operations(Case(Facts(located=product)))] == [None, None]


def test_nothing_found_but_not_finite() -> None:
    (everywhere,) = safe_operations(Case(Facts(), findings=[NAN_LOSS]))
    assert everywhere.plan == {"safe_ops": {"everywhere": True}}
    assert not list(safe_operations(Case(Facts())))


def test_links_for_a_log_of_negative_values_alone() -> None:
    found = list(links(Case(Facts(located=LOG))))
    assert [r.plan["safe_ops"]["sites"][0]["as"] for r in found] == ["logsigmoid", "log_softmax"]
    assert all(r.lead == 0.6 and r.intrusiveness == 0.2 for r in found)
    for remedy in found:
        Change(remedy.plan)
    zero = replace(LOG, detail="log of 0 in 1 of 2 values")
    assert not list(links(Case(Facts(located=zero))))


def test_float32_where_something_is_half() -> None:
    exploded = Verdict("nonfinite", -1.0, 1.0, 1.0, 1.0, "")
    (led,) = precision(Case(Facts(half=True, verdict=exploded)))
    assert led.plan == {"precision": "float32"} and led.lead == 0.6
    (listed,) = precision(Case(Facts(half=True)))
    assert listed.lead is None
    assert not list(precision(Case(Facts())))


@pytest.mark.parametrize(
    "kind",
    ["softmax_before_cross_entropy", "one_unit_softmax", "broadcast_in_loss", "nll_without_log_softmax"],
)
def test_a_mistake_in_the_loss_is_put_right(kind: str) -> None:
    portrait = Portrait(oddities=(Oddity(kind, "loss", ""), Oddity("loss_sum", "loss", "")))
    (remedy,) = loss_calls(
        Case(Facts(portrait=portrait, last=portrait), [Cause("loop_mistake", 0.9, "", (), (), "")])
    )
    assert remedy.plan == {"loss_calls": [kind]} and remedy.lead == 0.6
    Change(remedy.plan)


def test_scales_are_put_together_from_the_survey() -> None:
    survey = {"inputs": {"modules": {"enc.0": RAW}}, "targets": {"modules": {"dec": TARGETS}}}
    inputs, targets, together = scaled_data(Case(Facts(), survey=survey))
    assert inputs.plan == {
        "standardise_inputs": {"modules": {"enc.0": {"mean": [1.0, 50.0], "std": [1.0, 300.0], "axis": -1}}}
    }
    assert inputs.lead == 0.15 and targets.lead is None and together.lead == 0.15
    assert together.plan == {**inputs.plan, **targets.plan}
    assert together.serves == ("unscaled_inputs", "unscaled_targets")
    Change(together.plan)


def test_data_that_are_standardised_already_and_two_optimizers() -> None:
    assert not list(scaled_data(Case(Facts(), survey={"inputs": {"modules": {"0": PLAIN}}})))
    raw = {"inputs": {"modules": {"0": RAW}}}
    assert not list(scaled_data(Case(Facts(optimizers=2), survey=raw)))
    assert not list(scaled_data(Case(Facts())))
