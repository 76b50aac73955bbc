"""Each rule has one trace on which it must speak, and a near miss on which it must not; and all rules together
keep what they promise: no scale, no NaN in the statistics, a state that can be saved, silence on odd losses."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from steadygrad.records import (
    ActivationStats,
    EmbeddingStats,
    Oddity,
    ParamInfo,
    Portrait,
    StepStats,
    TensorStats,
)
from steadygrad.rules import RULES, RuleSet
from steadygrad.rules.oddity_rule import OddityRule
from steadygrad.rules.portrait_rule import PortraitRule

NAN, INF = float("nan"), float("inf")
LAYERS = 6
PARAMS = tuple(
    ParamInfo(
        i, f"{i // 2}.{'bias' if i % 2 else 'weight'}", (8,) if i % 2 else (8, 8), "float32", 0, "", "Linear"
    )
    for i in range(2 * LAYERS)
)
SHARES = np.array([0.5 if i % 2 else 1.0 for i in range(2 * LAYERS)])
SHARES /= np.linalg.norm(SHARES)

Trace = list[StepStats]
Fn = Callable[[int], float]


def trace(n: int, loss: Fn, norm: Fn = lambda t: 1.0, **fields) -> Trace:
    """``n`` steps of a six-layer model, with a little noise on the gradient norm."""
    noise = np.random.default_rng(0).normal(0, 0.05, n)
    steps = []
    for t in range(n):
        g = norm(t) * math.exp(noise[t])
        values = {k: v(t) for k, v in fields.items()}
        norms = (SHARES * g).astype(np.float32)
        value = loss(t)
        steps.append(
            StepStats(t, 0, None if value is None else float(value), g, g, norms, 0.01, PARAMS, **values)
        )
    return steps


def noisy(seed: int = 1, n: int = 5000, sd: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sd, n)


NOISE = noisy()


def falling(t: int) -> float:
    return 2.3 * math.exp(-t / 60) + 0.2 + 0.1 * abs(NOISE[t])


def at(step: int, value: float, otherwise: Fn) -> Fn:
    return lambda t: value if t == step else otherwise(t)


def since(step: int, then: Fn, before: Fn) -> Fn:
    return lambda t: then(t - step) if t >= step else before(t)


def one(t: int) -> float:
    return 1.0


def tensor(every: int = 1, **values) -> Callable[[int], tuple[TensorStats, ...]]:
    base = TensorStats(0, 0.1, 5.0, 1e-3)
    return lambda t: (replace(base, **values),) if t % every == 0 else ()


def activation(**values) -> Callable[[int], tuple[ActivationStats, ...]]:
    base = ActivationStats("net.1", "ReLU", 1.0, dead=0.3, saturated=0.1, input_rms=1.0)
    return lambda t: (replace(base, **values),) if t % 16 == 0 else ()


def profile(gain: float) -> Trace:
    """The gradient RMS of each layer is ``gain`` times that of the layer after it."""
    steps = trace(60, falling)
    norms = np.array([gain ** (LAYERS - 1 - i // 2) for i in range(2 * LAYERS)], np.float32)
    return [replace(s, grad_norms=norms) for s in steps]


def embedded(
    spread: Fn = one, rank: Fn = lambda t: 20.0, every: int = 5
) -> Callable[[int], EmbeddingStats | None]:
    return lambda t: EmbeddingStats(128, 32, spread(t), rank(t), 0.5, -2.0) if t % every == 0 else None


def adam(values: Fn) -> Callable[[int], tuple[TensorStats, ...]]:
    return lambda t: (TensorStats(2, 0.1, 5.0, 1e-3, adam_rms=values(t)),)


# code -> (a trace on which the rule must speak, a near miss)
EXAMPLES: dict[str, tuple[Trace, Trace]] = {
    "L100": (trace(60, at(40, NAN, falling)), trace(60, at(40, 30.0, falling))),
    "G100": (trace(60, falling, at(40, NAN, one)), trace(60, falling, at(40, 1e3, one))),
    "P100": (trace(60, falling, tensors=tensor(weight_finite=False)), trace(60, falling, tensors=tensor())),
    "O100": (trace(60, falling, tensors=tensor(state_finite=False)), trace(60, falling, tensors=tensor())),
    "A100": (
        trace(60, falling, activations=activation(rms=INF)),
        trace(60, falling, activations=activation(rms=1e9)),
    ),
    # Twice in a row with a risen loss; the near miss spikes as high, and the loss with it, but once.
    "G101": (
        trace(60, since(40, lambda t: 9.0, falling), since(40, lambda t: 1e3, one)),
        trace(60, at(40, 9.0, falling), at(40, 5.0, one)),
    ),
    "G102": (
        trace(60, falling, since(40, lambda t: 2.5**t, one)),
        trace(60, falling, since(40, lambda t: 1.2**t, one)),
    ),
    "G103": (trace(60, falling, at(40, 1e5, one)), trace(60, falling, at(40, 1e3, one))),
    "L101": (trace(60, since(40, lambda t: 60.0, falling)), trace(60, at(40, 1e4, falling))),
    "L102": (trace(60, at(40, 9.0, falling)), trace(60, at(40, 0.7, lambda t: 0.5 + 0.1 * NOISE[t]))),
    "L103": (
        trace(400, since(200, lambda t: 2.2, falling)),
        # A hundred steps later it is still high but on its way back: recorded, but no warning.
        trace(400, since(200, lambda t: 2.2 * math.exp(-t / 300), falling)),
    ),
    "L104": (
        trace(300, since(30, lambda t: 40.0 + NOISE[t], falling)),
        # Twenty times the start for the first seventy steps, and then it trains.
        trace(300, since(70, falling, lambda t: 2.3 if t < 3 else 46.0)),
    ),
    "L105": (
        trace(80, since(30, lambda t: 2.3 * 1.05**t, lambda t: 2.3 + 0.1 * NOISE[t])),
        trace(80, lambda t: 2.3 + 20 * abs(NOISE[t])),
    ),
    "L106": (trace(120, lambda t: 2.3 + 0.1 * NOISE[t]), trace(120, falling)),
    "L107": (
        trace(200, lambda t: 3.0 if t % 2 else 0.1),
        trace(200, lambda t: 1.4 if t % 2 else 1.0),
    ),
    "G201": (profile(5.0), profile(2.0)),
    "G202": (profile(0.2), profile(0.5)),
    "O101": (
        trace(60, falling, tensors=tensor(update_ratio=0.5)),
        # A bias may: it starts near 0.
        trace(60, falling, tensors=tensor(update_ratio=0.5, param=1)),
    ),
    "O102": (
        trace(100, falling, tensors=adam(lambda t: 30.0 if t == 60 else 1.0)),
        trace(100, falling, tensors=adam(lambda t: 2.5 + (t % 2))),
    ),
    "O103": (
        trace(100, lambda t: 2.3 + NOISE[t], tensors=adam(lambda t: 1e-9 if t > 50 else 1.0)),
        # The loss has come near 0: small gradients have their reason.
        trace(300, lambda t: 2.3 * math.exp(-t / 20), tensors=adam(lambda t: 1e-9 if t > 250 else 1.0)),
    ),
    "A101": (
        trace(100, falling, activations=activation(dead=1.0)),
        trace(100, falling, activations=activation(dead=0.85)),
    ),
    "A102": (
        trace(100, falling, activations=activation(saturated=0.95)),
        trace(100, falling, activations=activation(saturated=0.7)),
    ),
    "P101": (
        trace(60, falling, loss_scale=lambda t: 65536.0 * 0.25**t, amp_skips=lambda t: 2),
        trace(60, falling, loss_scale=lambda t: max(2.0, 65536.0 * 0.5**t), amp_skips=lambda t: t % 2),
    ),
    "D101": (
        trace(60, falling, activations=activation(input_rms=120.0)),
        trace(60, falling, activations=activation(input_rms=5.0)),
    ),
    # The near misses come as low, but for two looks only.
    "E101": (
        trace(80, falling, embedding=embedded(spread=since(40, lambda t: 0.3, lambda t: 0.8))),
        trace(80, falling, embedding=embedded(spread=lambda t: 0.3 if t in (40, 45) else 0.8)),
    ),
    "E102": (
        trace(80, falling, embedding=embedded(rank=since(40, lambda t: 5.0, lambda t: 20.0))),
        trace(80, falling, embedding=embedded(rank=lambda t: 5.0 if t in (40, 45) else 20.0)),
    ),
}


def oddity(kind: str) -> Callable[[int], Portrait | None]:
    """Seen at the samples from step 20 on."""
    portrait = Portrait(oddities=(Oddity(kind, "head", f"{kind} is seen", {"share": 0.5}),))
    return lambda t: portrait if t >= 20 and t % 10 == 0 else None


EXAMPLES |= {
    rule.code: (
        trace(60, falling, portrait=oddity(rule.kinds[0])),
        trace(60, falling, portrait=oddity(f"no_{rule.kinds[0]}")),
    )
    for rule in RULES
    if issubclass(rule, OddityRule)
}

# What the rule must say, where its worst is not what a single example can show.
WORST = {"L100": "warning", "G102": "info"}
# A near miss may be recorded where the rule records and warns by degrees.
RECORDED = {"G101": "info", "L103": "info"}


def observe(steps: Trace, rules=RULES):
    rule_set = RuleSet(rules)
    findings = [f for s in steps for f in rule_set.observe(s)]
    assert not rule_set.broken, rule_set.broken
    return findings


def only(code: str, steps: Trace):
    return observe(steps, [r for r in RULES if r.code == code])


def scaled(steps: Trace, c: float) -> Trace:
    """The run of a loss multiplied by ``c``."""
    return [
        replace(
            s,
            loss=s.loss if s.loss is None else s.loss * c,
            grad_norm=s.grad_norm * c,
            clipped_grad_norm=s.clipped_grad_norm * c,
            grad_norms=(s.grad_norms.astype(np.float64) * c).astype(np.float32),
        )
        for s in steps
    ]


def verdicts(findings):
    return [(f.code, f.step, f.severity, f.where) for f in findings]


# Those that read the layers of a portrait have a suite of their own: test_portrait_rules.py.
CODES = [r.code for r in RULES if not issubclass(r, PortraitRule)]


def test_every_rule_has_its_examples():
    assert set(EXAMPLES) == set(CODES)
    assert len(set(CODES)) == len(CODES)


@pytest.mark.parametrize("rule", [r for r in RULES if r.code in CODES], ids=lambda r: r.code)
def test_fires(rule):
    findings = only(rule.code, EXAMPLES[rule.code][0])
    assert findings, f"{rule.name} is silent on its own example"
    assert {f.code for f in findings} == {rule.code}
    worst = WORST.get(rule.code, rule.severity)
    assert worst in {f.severity for f in findings}
    for f in findings:
        assert f.rule == rule.name and f.where and len(f.message) > 10
        assert all(isinstance(v, float) for v in f.evidence.values())


@pytest.mark.parametrize("rule", [r for r in RULES if r.code in CODES], ids=lambda r: r.code)
def test_near_miss(rule):
    told = {f.severity for f in only(rule.code, EXAMPLES[rule.code][1])}
    assert told <= {RECORDED.get(rule.code)}, f"{rule.name} spoke: {told}"


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("code", CODES)
def test_scale_free(code, c):
    for steps in EXAMPLES[code]:
        assert verdicts(observe(scaled(steps, c))) == verdicts(observe(steps))


@pytest.mark.parametrize("code", CODES)
def test_state_round_trip(code):
    """Saved in the middle and loaded elsewhere, through JSON: the later findings are the same."""
    steps = EXAMPLES[code][0]
    half = len(steps) // 2
    whole, first, second = RuleSet(), RuleSet(), RuleSet()
    expected = [whole.observe(s) for s in steps][half:]
    for s in steps[:half]:
        first.observe(s)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.observe(s) for s in steps[half:]] == expected
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


POISONS = {
    "loss nan": {"loss": NAN},
    "loss inf": {"loss": INF},
    "gradient nan": {"grad_norm": NAN, "clipped_grad_norm": NAN},
    "gradient inf": {"grad_norm": INF, "clipped_grad_norm": INF},
    "clip nan": {"clipped_grad_norm": NAN},
    "skipped": {"grad_norm": 1e20, "clipped_grad_norm": 1e20, "loss": 1e20, "applied": False},
}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("code", CODES)
def test_a_poisoned_step_changes_nothing_after_it(code, poison):
    """One bad step among the others: history and later verdicts are those of the run without it."""
    steps = EXAMPLES[code][0]
    clean, dirty = RuleSet(), RuleSet()
    own: set[str] = set()  # what the poison itself began: that is not told a second time so soon
    for s in steps:
        if s.step == 25:
            own = {f.code for f in dirty.observe(replace(s, **POISONS[poison]))}
        a, b = clean.observe(s), dirty.observe(s)
        if s.step > 25:
            assert [f for f in a if f.code not in own] == [f for f in b if f.code not in own]
    a, b = clean.history().state_dict(), dirty.history().state_dict()
    assert b.pop("num_rejected") == a.pop("num_rejected") + 1
    assert a == b


ODD = {
    "none": lambda t: None,
    "zero": lambda t: 0.0,
    "constant": lambda t: 2.5,
    "negative constant": lambda t: -2.5,
    "negative noise": lambda t: -5 + NOISE[t],
    "falling below zero": lambda t: 1 - t / 50,
    "noise around zero": lambda t: NOISE[t],
    "mostly zero": lambda t: 1.0 if t % 37 == 0 else 0.0,
    "tiny": lambda t: 1e-30 * (1 + NOISE[t]),
    "slowly growing": lambda t: 1.0 + t / 200 + NOISE[t],
    "warm-up": lambda t: 2.3 * math.exp(-max(0, t - 100) / 200) + 0.2 * NOISE[t],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_losses_alarm_nobody(name):
    told = [f for f in observe(trace(1000, ODD[name])) if f.severity != "info"]
    assert not told, told


@pytest.mark.parametrize("n", [0, 1, 2])
def test_short_runs(n):
    assert observe(trace(n, falling)) == []


def test_no_parameters_and_zero_gradients():
    empty = StepStats(0, 0, None, 0.0, 0.0, np.zeros(0, np.float32), NAN)
    assert observe([replace(empty, step=t) for t in range(150)]) == []


def test_records_without_parameter_table():
    """A rule that names a parameter must not fall over where the record lists none."""
    steps = [replace(s, params=()) for code in CODES for s in EXAMPLES[code][0][:60]]
    observe(steps)


@pytest.mark.parametrize(
    "indices", [range(12), range(30, 42), [*range(30, 41), 90]], ids=["first", "second", "grown"]
)
def test_sampled_tensors_are_named_by_their_index_in_the_trace(indices):
    """The second optimizer's parameters do not start at 0, and one that came later breaks the order."""
    params = tuple(replace(p, index=i) for p, i in zip(PARAMS, indices, strict=True))
    bad = (TensorStats(params[-1].index, 0.1, 5.0, 1e-3, weight_finite=False),)
    (found,) = only("P100", [replace(trace(1, falling)[0], params=params, tensors=bad)])
    assert found.where == PARAMS[-1].name
