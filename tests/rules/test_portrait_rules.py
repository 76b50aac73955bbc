"""The rules that read a portrait: each fires on a net made to show it, once, and not on its healthy twin."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.probe.portrait import Portraitist
from steadygrad.records import NAN, AttentionStats, LayerStats, LossTerm, Portrait, RecurrenceStats, StepStats
from steadygrad.rules import RULES, RuleSet
from steadygrad.rules.portrait_rule import PortraitRule, biggest_jump, decades, stack

PORTRAIT_RULES = [rule for rule in RULES if issubclass(rule, PortraitRule) and rule.code.startswith("F")]


def step(t, portrait, optimizer=0):
    return StepStats(t, optimizer, 1.0, 1.0, 1.0, np.ones(1, np.float32), 0.1, portrait=portrait)


def told(*portraits):
    rules = RuleSet(PORTRAIT_RULES)
    found = [f for t, p in enumerate(portraits) for f in rules.observe(step(t, p))]
    assert not rules.broken
    return found


def codes(portrait):
    return {f.code for f in told(portrait)}


def one(portrait, code):
    (finding,) = [f for f in told(portrait) if f.code == code]
    return finding


def portrait_of(model, x, loss_fn):
    painter = Portraitist()
    out = model(x)
    loss = loss_fn(out)
    painter.look([loss], [out], [], {p: n for n, p in model.named_parameters()})
    loss.backward()
    return painter.take({id(p): n for n, p in model.named_parameters()})


def deep(gain, depth=12, width=32, norm=False, activation=nn.ReLU):
    torch.manual_seed(0)
    parts = []
    for _ in range(depth):
        layer = nn.Linear(width, width, bias=False)
        nn.init.normal_(layer.weight, std=gain * (2 / width) ** 0.5)
        parts += [layer, activation(), *([nn.LayerNorm(width)] if norm else [])]
    return nn.Sequential(*parts, nn.Linear(width, 3))


X, Y = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 3


def classify(out):
    return F.cross_entropy(out, Y)


# ---------------------------------------------------------------------- nets made to show it
def test_growth_forwards_and_backwards():
    portrait = portrait_of(deep(3.0), X, classify)
    forward, backward = one(portrait, "F101"), one(portrait, "F102")
    rows = portrait.layers
    assert forward.evidence["decades"] == pytest.approx(math.log10(rows[-1].output_rms / rows[1].input_rms))
    assert backward.evidence["decades"] == pytest.approx(math.log10(rows[0].grad_rms / rows[-2].grad_rms))
    assert forward.evidence["layers"] == 13 and forward.evidence["head"] == 0
    assert forward.where == backward.where == "0.weight .. 24.weight"
    assert backward.evidence["jump"] < 1.5 and forward.evidence["jump"] < 1.5


def test_decay():
    finding = one(portrait := portrait_of(deep(0.3), X, classify), "F103")
    rows = portrait.layers
    first = max(row.grad_rms for row in rows[:3])
    assert finding.evidence["decades"] == pytest.approx(math.log10(rows[-2].grad_rms / first))
    assert finding.evidence["forward_decades"] == pytest.approx(
        math.log10(rows[-1].input_rms / rows[1].input_rms), rel=1e-4
    )
    assert "F102" not in codes(portrait)


@pytest.mark.parametrize("model", [deep(1.0), deep(3.0, norm=True), deep(0.5, norm=True), deep(3.0, depth=1)])
def test_healthy_stacks(model):
    assert codes(portrait_of(model, X, classify)).isdisjoint({"F101", "F102", "F103"})


def test_one_layer_is_to_blame():
    model = deep(1.0)
    with torch.no_grad():
        model[10].weight.mul_(1e5)
    found = {f.code: f for f in told(portrait_of(model, X, classify))}
    assert found["F101"].where == found["F102"].where == "10.weight"
    assert found["F101"].evidence["jump"] == pytest.approx(5, abs=0.3)
    assert found["F101"].evidence["head"] == 0 and "most of it in 10.weight" in found["F101"].message


def test_the_head_is_to_blame():
    model = deep(1.0)
    with torch.no_grad():
        model[-1].weight.mul_(1e3)
    found = {f.code: f for f in told(portrait_of(model, X, classify))}
    assert (found["F101"].where, found["F101"].evidence["head"]) == ("24.weight", 1.0)
    assert "F102" not in found
    start = found["F106"]
    assert start.evidence["expected"] == pytest.approx(math.log(3))
    assert start.evidence["ratio"] == pytest.approx(start.evidence["value"] / math.log(3))


def test_adapters_that_begin_at_zero():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(32, 4))
            self.b = nn.Parameter(torch.zeros(4, 32))
            self.register_buffer("w", torch.eye(32))

        def forward(self, x):
            return x @ self.w + x @ self.a @ self.b

    torch.manual_seed(0)
    model = nn.Sequential(*(Adapted() for _ in range(4)), nn.Linear(32, 3))
    assert codes(portrait_of(model, X, classify)) == set()


class Recurrent(nn.Module):
    def __init__(self, gain):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(2, 16, nonlinearity="relu", batch_first=True), nn.Linear(16, 3)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(torch.eye(16) * gain)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def test_recurrence():
    x = torch.rand(64, 40, 2)
    portrait = portrait_of(Recurrent(1.6), x, classify)
    finding = one(portrait, "F104")
    assert finding.where == "rnn.weight_hh_l0" and finding.evidence["per_step"] == pytest.approx(1.6, rel=0.1)
    assert finding.evidence["steps"] >= 39 and finding.evidence["gain"] == pytest.approx(1.6, rel=1e-3)
    assert finding.evidence["overflow_depth"] == pytest.approx(38.5 / math.log10(1.6), rel=0.15)
    assert finding.evidence["excess"] > 1
    assert codes(portrait_of(Recurrent(0.95), x, classify)) == set()
    assert "F104" not in codes(portrait_of(Recurrent(0.5), x, classify))


class Attending(nn.Module):
    def __init__(self, gain):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head, self.gain = nn.Linear(8, 24), nn.Linear(8, 3), gain

    def forward(self, x):
        q, k, v = (t[:, None] for t in self.qkv(x).chunk(3, -1))
        return self.head(F.scaled_dot_product_attention(q * self.gain, k, v)[:, 0, -1])


def test_attention():
    x = torch.randn(64, 12, 8, generator=torch.Generator().manual_seed(0))
    finding = one(portrait_of(Attending(300.0), x, classify), "F105")
    assert finding.where == "qkv.weight" and finding.evidence["keys"] == 12
    assert finding.evidence["max_logit"] > 30 and finding.evidence["entropy"] < 0.5
    assert "F105" not in codes(portrait_of(Attending(1.0), x, classify))


def test_targets():
    y = torch.randn(64, 1) * 50 + 300
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    finding = one(portrait_of(model, X, lambda out: F.mse_loss(out, y)), "F108")
    assert finding.evidence["target_rms"] == pytest.approx(y.square().mean().sqrt().item(), rel=1e-4)
    assert finding.evidence["mean"] == pytest.approx(y.mean().item(), rel=1e-4)
    assert codes(portrait_of(model, X, lambda out: F.mse_loss(out, (y - 300) / 50))) == set()
    ready = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    nn.init.constant_(ready[-1].bias, 300.0)
    assert "F108" not in codes(portrait_of(ready, X, lambda out: F.mse_loss(out, y)))


def test_symmetric_units():
    def net():
        return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    model, last_zero = net(), net()
    nn.init.constant_(model[2].weight, 0.1)
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(last_zero[4].weight)
    assert one(portrait_of(model, X, lambda out: out.square().mean()), "F109").where == "2.weight"
    assert "F109" not in codes(portrait_of(last_zero, X, lambda out: (out - 1).square().mean()))
    assert "F109" not in codes(portrait_of(net(), X, lambda out: out.square().mean()))


def test_half_precision():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    for dtype, times, fires in (
        (torch.float16, 2e4, True),
        (torch.float16, 1e3, False),
        (torch.bfloat16, 2e4, False),
    ):
        x = X.clamp(-1, 1)
        x[0, 0] = 1.0
        with torch.autocast("cpu", dtype):
            portrait = portrait_of(model, x * times, lambda out: out.float().mean() * 1e-6)
        assert ("F107" in codes(portrait)) is fires
        if fires:
            evidence = one(portrait, "F107").evidence
            assert evidence["input_max"] == pytest.approx(2e4, rel=1e-2)
            assert evidence["share"] == pytest.approx(2e4 / 65504, rel=1e-2)


# ---------------------------------------------------------------------- numbers
def rows(inputs, grads, output=NAN, op="Addmm"):
    return tuple(
        LayerStats(f"l{i}", op, 1, x, x, output if i == len(inputs) - 1 else NAN, g, "float32")
        for i, (x, g) in enumerate(zip(inputs, grads, strict=True))
    )


BAD = {
    "F101": Portrait(layers=rows([1, 1, 10, 100], [1] * 4, 1e3)),
    "F102": Portrait(layers=rows([1] * 4, [1e6, 1e3, 1, 1], 1)),
    "F103": Portrait(layers=rows([1] * 4, [1e-9, 1e-5, 1, 1], 1)),
    "F104": Portrait(recurrences=(RecurrenceStats("w", 50, 0.0, 5.0, 1.0, 1.2),)),
    "F105": Portrait(attention=(AttentionStats("w", 50.0, 0.2, 64),)),
    "F106": Portrait(
        terms=(LossTerm("cross_entropy", 50.0, NAN, 1, "mean", 8, 1, NAN, NAN, NAN, classes=10),)
    ),
    "F107": Portrait(layers=(replace(rows([3e4], [1])[0], dtype="float16"),)),
    "F108": Portrait(terms=(LossTerm("mse", 1e4, NAN, 1, "mean", 8, 1.0, 100.0, 100.0, 1.0),)),
    "F109": Portrait(layers=tuple(replace(row, same_units=True) for row in rows([1] * 4, [1] * 4, 1))),
}
FINE = {
    "F101": Portrait(layers=rows([1, 1, 10, 100], [1] * 4, 20)),
    "F102": Portrait(layers=rows([1] * 4, [900, 10, 1, 1], 1)),
    "F103": Portrait(layers=rows([1] * 4, [1 / 900, 1, 1, 1], 1)),
    "F104": Portrait(recurrences=(RecurrenceStats("w", 50, 3.0, 3.9, 9.0, 1.2),)),
    "F105": Portrait(attention=(AttentionStats("w", 29.0, 0.2, 64), AttentionStats("w", 90.0, 0.6, 64))),
    "F106": Portrait(
        terms=(LossTerm("cross_entropy", 18.0, NAN, 1, "mean", 8, 1, NAN, NAN, NAN, classes=10),)
    ),
    "F107": Portrait(layers=(replace(rows([1.6e4], [1])[0], dtype="float16"), *rows([1e5], [1]))),
    "F108": Portrait(terms=(LossTerm("mse", 1e4, NAN, 1, "mean", 8, 11.0, 100.0, 100.0, 1.0),)),
    "F109": Portrait(layers=(*rows([1] * 3, [1] * 3, 1), replace(rows([1], [1], 1)[0], same_units=True))),
}


def test_every_rule_is_here():
    assert {rule.code for rule in PORTRAIT_RULES} == BAD.keys() == FINE.keys()
    assert {rule.severity for rule in PORTRAIT_RULES} == {"info"}


@pytest.mark.parametrize("code", BAD)
def test_one_finding_per_onset(code):
    late = code in ("F106", "F108", "F109")
    assert codes(BAD[code]) == {code} and codes(FINE[code]) == set() == codes(Portrait())
    found = told(BAD[code], None, BAD[code], *[None] * 30, BAD[code])
    assert [f.step for f in found] == [0]
    again = told(*[BAD[code]] * 3, *[FINE[code]] * 300, *[BAD[code]] * 3)
    assert [f.step for f in again] == ([0] if late else [0, 303])


def test_an_early_rule_is_silent_later():
    assert [f.step for f in told(None, None, BAD["F106"], BAD["F108"])] == []


def test_unknown_numbers_are_no_growth():
    assert codes(Portrait(layers=rows([1, 1, NAN, NAN], [1] * 4))) == set()
    assert codes(Portrait(layers=rows([NAN] * 4, [NAN] * 4))) == set()
    assert codes(Portrait(recurrences=(RecurrenceStats("w", 9, NAN, NAN, NAN, NAN),))) == set()
    assert codes(Portrait(attention=(AttentionStats("", NAN, NAN, 1),))) == set()
    assert codes(Portrait(attention=(AttentionStats("", NAN, 0.05, 9),))) == {"F105"}


def test_overflow_is_growth_without_bound():
    finding = one(Portrait(layers=rows([1, 1, math.inf, NAN], [1] * 4)), "F101")
    assert finding.evidence["decades"] == math.inf and "without bound" in finding.message
    finding = one(Portrait(layers=rows([1] * 4, [math.inf, 1e9, 1, 1], 1)), "F102")
    assert finding.evidence["decades"] == math.inf and "without bound" in finding.message
    for r in (
        RecurrenceStats("w", 9, math.inf, NAN, NAN, NAN),
        RecurrenceStats("w", 9, NAN, math.inf, 1.0, NAN),
    ):
        finding = one(Portrait(recurrences=(r,)), "F104")
        assert finding.evidence["decades"] == math.inf and "without bound" in finding.message


def test_what_grew_is_what_is_told():
    state = RecurrenceStats("w", 40, 6.0, NAN, 1e6, NAN)
    finding = one(Portrait(recurrences=(replace(state, name="v", forward_decades=3.0), state)), "F104")
    assert finding.where == "w" and finding.message.startswith("the state grows")
    assert finding.evidence["per_step"] == pytest.approx(10 ** (6 / 30)) and finding.evidence["excess"] == 3
    finding = one(Portrait(recurrences=(replace(state, backward_decades=20.0),)), "F104")
    assert finding.message.startswith("the gradient grows") and finding.evidence["decades"] == 20


def test_helpers():
    layers = rows([1, 2, 40, 80], [1, 1, NAN, 1])
    shown = Portrait(layers=(*layers, replace(layers[0], uses=2), replace(layers[0], op="Embedding")))
    assert [row.name for row in stack(shown)] == ["l0", "l1", "l3"]
    assert stack(replace(shown, recurrences=(RecurrenceStats("l1", 4, 0, 0, 1, 1),)))[1].name == "l3"
    assert decades(1e300, 1e-300) == pytest.approx(600) and all(
        math.isnan(decades(a, b)) for a, b in ((1, 0), (0, 1), (math.inf, 1), (1, NAN))
    )
    name, jump = biggest_jump(layers, [1, 2, 40, 80])
    assert name == "l1" and jump == pytest.approx(math.log10(20))
    assert biggest_jump(layers, [1, 2, 40, 80, 8e4])[0] == "l3"
    assert math.isnan(biggest_jump(layers, [NAN] * 4)[1])
