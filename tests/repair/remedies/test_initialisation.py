"""Which weights a run may start from instead."""

from steadygrad.records import Portrait, RecurrenceStats
from steadygrad.repair.remedies.initialisation import recurrent_weights, reinitialise, small_output, zero_bias
from tests.repair.remedies.step_cases import built, case
from tests.repair.remedies.surgery_cases import HEAD, layer, surveyed


def schemes(of):
    return {r.plan["reinitialise"]["scheme"]: r for r in built(reinitialise, of).values()}


def test_schemes_by_what_follows():
    rectified = schemes(surveyed(layers=[layer("a"), HEAD]))
    assert list(rectified) == ["lsuv", "he", "orthogonal"]
    assert rectified["he"].plan["reinitialise"]["modules"] == {"a": 1.4, "head": 1.4}
    assert list(schemes(surveyed(layers=[layer("a", activation="tanh"), HEAD]))) == [
        "lsuv",
        "xavier",
        "orthogonal",
    ]


def test_recurrent_layers_and_those_that_are_not_of_torch_are_left_out():
    of = surveyed(layers=[layer("a"), layer("cell", recurrent=True), layer("own", plain=False), HEAD])
    assert list(schemes(of)["lsuv"].plan["reinitialise"]["modules"]) == ["a", "head"]


def test_nothing_without_a_survey_or_a_hidden_layer():
    for builder in (reinitialise, small_output, zero_bias, recurrent_weights):
        assert not built(builder, case("stuck"))
    assert not built(reinitialise, surveyed(layers=[HEAD]))


def test_a_small_output_where_it_is_not_tied():
    (remedy,) = built(small_output, surveyed(layers=[layer("a"), HEAD])).values()
    assert remedy.plan == {"output_scale": {"modules": ["head"], "factor": 0.05}}
    assert not built(small_output, surveyed(layers=[layer("a"), {**HEAD, "tied": True}]))


def test_biases_of_0_where_nothing_has_exploded():
    layers = [layer("a"), layer("b", bias=False)]
    (remedy,) = built(zero_bias, surveyed(layers=layers)).values()
    assert remedy.plan == {"zero_bias": {"modules": ["a"]}}
    assert not built(zero_bias, surveyed("exploded", layers=layers))


def test_recurrent_weights_by_survey_or_portrait_if_their_blocks_are_square():
    row = RecurrenceStats("cell.weight", 20, 3.0, 3.0, 1.0, 2.0)
    layers = [
        layer("rnn", weight="rnn.weight_hh_l0", recurrent=True, shape=[24, 8]),
        layer("cell"),
        layer("odd", recurrent=True, shape=[9, 8]),
        HEAD,
    ]
    found = built(recurrent_weights, surveyed(layers=layers, portrait=Portrait(recurrences=(row,))))
    names = ["rnn.weight_hh_l0", "cell.weight"]
    assert [next(iter(r.plan.values()))["weights"] for r in found.values()] == [names, names]
