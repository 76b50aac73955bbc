"""Norms, activations, attention and branches: what is changed, where, and on which evidence."""

import pytest

from steadygrad.records import AttentionStats, LossTerm, Oddity, Portrait
from steadygrad.repair.remedies.activations import other_activation, remove_output_activation, revive_units
from steadygrad.repair.remedies.attention import bounded_attention
from steadygrad.repair.remedies.norms import insert_norms
from steadygrad.repair.remedies.residual import small_branches
from tests.repair.remedies.step_cases import built
from tests.repair.remedies.surgery_cases import HEAD, layer, surveyed

ALL = (
    other_activation,
    remove_output_activation,
    revive_units,
    bounded_attention,
    insert_norms,
    small_branches,
)


@pytest.mark.parametrize("builder", ALL)
def test_nothing_without_a_survey(builder):
    assert not built(builder, surveyed())


def term(**more):
    known = {"kind": "mse", "value": 1.0, "trivial": 1.0, "weight": 1.0, "reduction": "mean", "elements": 64}
    scales = {"prediction_rms": 1.0, "target_rms": 1.0, "target_mean": 0.0, "target_std": 1.0}
    return LossTerm(**{**known, **scales, **more})


def test_norms_between_layers_that_have_none():
    layers = [layer("a"), layer("b", normed=True), layer("q", attention=["query"]), layer("two", width=2)]
    layers += [layer("step", uses=9), layer("cell", recurrent=True), HEAD]
    found = built(insert_norms, surveyed(layers=layers))
    assert found["layer norm"].plan["layer_norm"]["modules"] == ["a", "step"]
    assert found["batch norm"].plan["batch_norm"]["modules"] == ["a"]


def test_no_batch_norm_over_single_samples():
    of = surveyed(layers=[layer("a"), HEAD], portrait=Portrait(terms=(term(elements=1),)))
    assert list(built(insert_norms, of)) == ["layer norm"]


CALL = {"file": "net.py", "line": 7, "kind": "Tanh"}


def test_each_kind_of_activation_has_its_own_replacements():
    hidden = {"modules": {"1": "ReLU", "3": "GELU"}, "calls": [CALL]}
    found = built(other_activation, surveyed(hidden=hidden))
    to = {
        (p["to"], tuple(p["modules"]), len(p["calls"]))
        for p in (r.plan["activation"] for r in found.values())
    }
    assert to == {
        ("LeakyReLU", ("1",), 0),
        ("GELU", ("1",), 0),
        ("ReLU", (), 1),
        ("GELU", (), 1),
        ("SELU", (), 1),
    }


def test_a_run_that_explodes_keeps_its_activations_unless_they_are_suspected():
    hidden = {"modules": {"1": "ReLU"}, "calls": []}
    assert not built(other_activation, surveyed("exploded", hidden=hidden))
    assert built(other_activation, surveyed("exploded", hidden=hidden, likely=["dead_units"]))


def test_an_output_activation_is_removed_on_evidence_and_by_its_kind():
    output = {"modules": {"5": "Softmax", "6": "Sigmoid"}, "calls": []}
    terms = (term(kind="cross_entropy", output="Softmax", classes=3),)
    odd = Portrait(terms=terms, oddities=(Oddity("softmax_before_cross_entropy", "loss", ""),))
    (remedy,) = built(remove_output_activation, surveyed(output=output, portrait=odd)).values()
    assert remedy.plan == {"remove_output_activation": {"modules": ["5"], "calls": []}}
    assert remedy.lead is not None
    assert not built(remove_output_activation, surveyed(output=output, portrait=Portrait(terms=terms)))


def test_dead_units_are_revived_where_they_are_suspected():
    layers = [layer("a"), layer("b", bias=False), layer("c", activation="tanh"), HEAD]
    found = built(revive_units, surveyed(layers=layers, likely=["dead_units"]))
    assert [next(iter(r.plan.values()))["modules"] for r in found.values()] == [["a"], ["a"]]
    assert not built(revive_units, surveyed(layers=layers))


def test_attention_is_bounded_where_there_is_some():
    portrait = Portrait(attention=(AttentionStats("q.weight", 40.0, 0.1, 16),))
    found = built(bounded_attention, surveyed(portrait=portrait))
    assert [list(r.plan) for r in found.values()] == [["soft_cap"], ["qk_norm"]]
    assert all(r.lead is None for r in found.values())
    led = built(bounded_attention, surveyed(portrait=portrait, unscaled=["block"]))
    scaled = led["attention logits / sqrt(d)"]
    assert scaled.plan == {"qk_scale": {"modules": ["block"]}} and scaled.lead is not None


def test_branches_start_small_where_there_are_several():
    layers = [layer("stem"), layer("1.b"), layer("2.b"), layer("3.b", plain=False), HEAD]
    ends = [["1.b"], ["2.b"], ["3.b"]]
    found = built(small_branches, surveyed(layers=layers, branches=ends))
    assert [r.plan["branch_scale"]["factor"] for r in found.values()] == [0.1, 0.0]
    assert all(r.plan["branch_scale"]["modules"] == ["1.b", "2.b"] for r in found.values())
    assert not built(small_branches, surveyed(layers=layers, branches=ends[:1]))
    likely = built(small_branches, surveyed(layers=layers, branches=ends, likely=["residual_accumulation"]))
    assert "residual_gate" in likely["residual branches behind gates"].plan
