"""Diagnosed runs of several kinds, made by hand, and what a builder gives for them."""

import json
import math

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.verdict import Verdict
from steadygrad.knowledge.pages import causes
from steadygrad.records import Cause, Finding
from steadygrad.repair.case import Case
from steadygrad.repair.effects.change import Change


def case(kind="exploded", *, codes=(), alarm_at=None, likely=(), **facts):
    """A case of this verdict. ``alarm_at``: step of an alarm that is added; ``likely``: causes of probability .5."""
    findings = [Finding(code, "rule", 0, "model", "") for code in codes]
    if alarm_at is not None:
        findings.append(Finding("L101", "loss_blowup", alarm_at, "loss", "", severity="alarm"))
    known = {
        "optimizer": "SGD",
        "lr": 0.1,
        "steps": 500,
        "healthy_steps": 40,
        "loss_first": 2.0,
        "loss_best": 0.5,
    }
    verdict = Verdict(kind, math.nan, 2.0, 9.0, math.nan, "")
    return Case(
        Facts(**{**known, "norm_before": 0.8, "verdict": verdict, **facts}),
        [Cause(name, 0.5, "model", (), (), "") for name in likely],
        findings,
    )


def built(builder, of):
    """The remedies by name; each must be one that can be put in force, and told to another process."""
    found = {}
    for remedy in builder(of):
        assert remedy.name not in found
        assert json.loads(json.dumps(remedy.plan)) == remedy.plan
        Change(remedy.plan)
        assert remedy.serves and set(remedy.serves) <= known_causes(), remedy.serves
        assert 0 < remedy.intrusiveness <= 1 and remedy.advice
        assert remedy.lead is None or 0 < remedy.lead < 1
        found[remedy.name] = remedy
    return found


def known_causes():
    return set(causes())
