"""A step asks only the rules it is for, and nobody can tell."""

import json
import math
import random

import numpy as np
import pytest

from steadygrad.records import ActivationStats, LayerStats, ParamInfo, Portrait, StepStats, TensorStats
from steadygrad.rules import RULES, Rule, RuleSet
from steadygrad.rules.history import History
from steadygrad.rules.memory import Memory

NAN = float("nan")
PARAMS = tuple(ParamInfo(i, f"p{i}", (8, 8), "float32", 0, f"m{i}", "Linear") for i in range(6))


def bare(t=0, **fields):
    """A step that brings only norms and a loss."""
    return StepStats(t, 0, 1.0, 1.0, 1.0, np.ones(6), 0.1, PARAMS, **fields)


def eventful(seed, steps=120):
    """A run on which many rules speak: losses and norms jump, tensors and modules break, portraits come and go."""
    draw = random.Random(seed)
    loss = norm = 1.0
    for t in range(steps):
        loss *= draw.choice([0.9, 1.0, 1.1, 1.3])
        norm *= draw.choice([0.7, 1.0, 1.4, 3.0])
        broken = draw.random() < 0.05
        tensors = TensorStats(
            t % 6, 1.0, 1.0, draw.choice([0.01, 0.9]), draw.choice([1.0, 9.0, 1e-6]), not broken
        )
        module = ActivationStats("m0", "ReLU", draw.choice([1.0, NAN]), draw.choice([0.1, 1.0]), 0.9, 99.0)
        rows = [
            LayerStats(p.name, "Addmm", 1, 1e3, 7e4, 1.0, 10.0 ** (4 - i), "float16")
            for i, p in enumerate(PARAMS)
        ]
        yield StepStats(
            t,
            0,
            draw.choice([loss, loss, NAN if broken else loss]),
            NAN if draw.random() < 0.05 else norm,
            norm,
            norm * np.array([1.0, 2.0, 4.0, 8.0, 0.0, draw.choice([NAN, 16.0])]),
            0.1,
            PARAMS,
            loss_scale=draw.choice([None, 2.0, 0.5]),
            amp_skips=draw.choice([0, 9]),
            tensors=draw.choice([(), (tensors,)]),
            activations=draw.choice([(), (module,)]),
            portrait=draw.choice([None, Portrait(tuple(rows))]),
        )


def always(rule):
    """The same rule, asked at every step."""
    return type(rule.__name__, (rule,), {"needs": ()})


@pytest.mark.parametrize("seed", range(5))
def test_findings_are_those_of_asking_every_rule_at_every_step(seed):
    run = list(eventful(seed))
    few, all_ = RuleSet(), RuleSet([always(rule) for rule in RULES])
    found = [few.observe(s) for s in run]
    assert found == [all_.observe(s) for s in run]
    assert len({f.code for step in found for f in step}) > 10


@pytest.mark.parametrize("rule", [r for r in RULES if r.needs], ids=lambda r: r.code)
def test_without_what_it_needs_a_rule_neither_speaks_nor_remembers(rule):
    asked, history = rule(), History()
    for stats in eventful(0):
        asked(stats, history)
        before = json.dumps(asked.state_dict())
        assert asked(bare(stats.step), history) is None
        assert json.dumps(asked.state_dict()) == before
        history.ingest(stats)


def counting(*needs):
    class Counting(Rule):
        code = f"X_{'_'.join(needs)}"
        severity = "info"

        def __call__(self, stats, history):
            calls.append((stats.step, needs))

    Counting.needs = needs
    calls = []
    return Counting, calls


def test_a_rule_is_asked_where_one_of_its_fields_is_given():
    tensor, module = TensorStats(0, 1.0, 1.0, 0.1), ActivationStats("m", "ReLU", 1.0)
    steps = [
        bare(0),
        bare(1, tensors=(tensor,)),
        bare(2, activations=(module,)),
        bare(3, portrait=Portrait()),
        bare(4, loss_scale=0.0),  # given, though it is 0
        bare(5, portrait=Portrait(), activations=(module,)),
    ]
    asked = {}
    for needs in (
        (),
        ("tensors",),
        ("activations",),
        ("portrait",),
        ("loss_scale",),
        ("portrait", "activations"),
    ):
        rule, calls = counting(*needs)
        rules = RuleSet([rule])
        for s in steps:
            rules.observe(s)
        asked[needs] = [t for t, _ in calls]
    assert asked == {
        (): [0, 1, 2, 3, 4, 5],
        ("tensors",): [1],
        ("activations",): [2, 5],
        ("portrait",): [3, 5],
        ("loss_scale",): [4],
        ("portrait", "activations"): [2, 3, 5],
    }


def test_an_ordinary_step_asks_few_rules():
    made = Memory({r.code: r() for r in RULES})
    assert len(made.due(bare())) == sum(not r.needs for r in RULES) < len(RULES) / 3


def test_a_rule_taken_out_is_neither_asked_nor_alarming():
    made = Memory({r.code: r() for r in RULES})
    nan = StepStats(0, 0, NAN, NAN, NAN, np.full(6, NAN), 0.1, PARAMS)
    for _, rule in made.due(nan):
        rule(nan, History())
    assert made.alarming() == ("L100", "G100")
    made.take_out(["L100", "unknown"])
    assert made.alarming() == ("G100",) and "L100" not in dict(made.due(nan))


@pytest.mark.parametrize("rule", [r for r in RULES if r.severity != "alarm"], ids=lambda r: r.code)
def test_a_rule_that_says_no_alarm_holds_none(rule):
    asked, history = rule(), History()
    for stats in eventful(1):
        asked(stats, history)
        assert not asked.alarming
        history.ingest(stats)


def test_what_several_rules_ask_for_is_worked_out_once_a_step():
    history, calls = History(), []

    def look(stats, of):
        calls.append((stats.step, of is history))
        return len(calls)

    for t in range(2):
        stats = bare(t)
        assert history.once(stats, look) == history.once(stats, look) == t + 1
        history.ingest(stats)
    assert calls == [(0, True), (1, True)] and math.isfinite(history.param_log_norms.sum())
