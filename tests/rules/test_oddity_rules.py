"""Rules that pass on an oddity: every kind has one rule and is told once, and none is lost where two come together."""

import json
from collections import Counter

import numpy as np
import pytest

from steadygrad.records import Oddity, Portrait, StepStats
from steadygrad.rules import RULES, RuleSet, page
from steadygrad.rules.oddity_rule import OddityRule

ODDITY_RULES = [rule for rule in RULES if issubclass(rule, OddityRule)]
KINDS = [(kind, rule) for rule in ODDITY_RULES for kind in rule.kinds]
WARNINGS = {"zero_grad_missing", "clip_before_unscale", "broadcast_in_loss", "scale_ignored"}


def steps(*oddities_at: tuple[Oddity, ...]) -> list[StepStats]:
    return [
        StepStats(
            t, 0, 1.0, 1.0, 1.0, np.ones(1, np.float32), 0.1, portrait=Portrait(oddities=o) if o else None
        )
        for t, o in enumerate(oddities_at)
    ]


def told(trace: list[StepStats], rules=ODDITY_RULES):
    rule_set = RuleSet(rules)
    found = [f for s in trace for f in rule_set.observe(s)]
    assert not rule_set.broken
    return found


def test_every_kind_has_one_rule():
    assert set(Counter(kind for kind, _ in KINDS).values()) == {1}
    assert {kind for kind, rule in KINDS if rule.severity == "warning"} == WARNINGS
    assert {rule.severity for rule in ODDITY_RULES} == {"info", "warning"}


@pytest.mark.parametrize(("kind", "rule"), KINDS, ids=[kind for kind, _ in KINDS])
def test_each_kind_is_told_once_as_it_is(kind, rule):
    odd = Oddity(kind, "head.weight", "a sentence about it", {"share": 0.25})
    (found,) = told(steps((), (odd,), (), (odd,), *[()] * 100, (odd,)))
    assert (found.code, found.rule, found.severity) == (rule.code, rule.name, rule.severity)
    assert (found.step, found.where, found.message) == (1, "head.weight", "a sentence about it")
    assert found.evidence == {"share": 0.25}


def test_two_kinds_of_one_rule():
    unused = Oddity("unused_parameters", "a", "first", {"parameters": 2.0})
    without = Oddity("no_gradient", "b", "second", {"share": 0.5})
    together = told(steps((unused, without), (without,)))
    assert [(f.code, f.where, f.message) for f in together] == [("M105", "a", "first; second")]
    assert together[0].evidence == {"parameters": 2.0, "share": 0.5}
    apart = told(steps((unused,), (unused, without)))
    assert [(f.step, f.message) for f in apart] == [(0, "first"), (1, "second")]


def test_two_rules_at_one_step():
    odd = (Oddity("zero_lr", "model", "no rate"), Oddity("eval_mode", "", "evaluation"))
    assert [(f.code, f.where) for f in told(steps(odd))] == [("M103", "model"), ("M111", "model")]


def test_what_was_told_is_remembered():
    odd = (Oddity("zero_lr", "model", "no rate"),)
    first, second = RuleSet(ODDITY_RULES), RuleSet(ODDITY_RULES)
    (s,) = steps(odd)
    assert len(first.observe(s)) == 1
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.observe(s) == []


@pytest.mark.parametrize("rule", ODDITY_RULES, ids=lambda r: r.code)
def test_pages_have_their_sections(rule):
    text = page(rule.code)
    for section in ("What it measures:", "Why it matters:", "Stays silent on:", "Remedies:", "Source:"):
        assert text.count(section) == 1
