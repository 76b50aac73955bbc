"""Each study of a family of methods: a version of seconds points where the full one does."""

from __future__ import annotations

import math

import pytest

from studies.claim import pick
from tests.studies.test_claims import one, smoke, study_of


def test_init_by_activation():
    runs = smoke("init_by_activation")
    for run in runs:
        assert run["a_layer"] == pytest.approx(run["expected"], abs=0.06)
    assert [run["holds"] for run in runs] == [0.0, 1.0, 1.0]  # Xavier, He, orthogonal under ReLU


def test_variance_map_of_relu_is_the_closed_form():
    from studies.init_by_activation.run import theory

    said = theory("relu", "xavier", 30)
    assert said.profile[0] == pytest.approx(-29 * math.log(2) / 2) and not said.holds


@pytest.mark.slow
def test_skips_and_depth():
    runs = smoke("skips_and_depth")
    plain = one(runs, kind="plain")
    assert plain["gradient"] ** (1 / 30) == pytest.approx(6**-0.5, abs=0.03) and plain["loss"] > 2.2
    for kind in ("residual", "highway", "dense"):
        assert 0.1 < one(runs, kind=kind)["gradient"] < 100 and one(runs, kind=kind)["loss"] < plain["loss"]


@pytest.mark.slow
def test_activations_without_norm():
    runs = smoke("activations_without_norm")
    relu, tanh = (one(runs, part="angle", activation=a)["apart"] for a in ("relu", "tanh"))
    assert relu[-1] < 0.1 * relu[0] and tanh[-1] > 0.5 * tanh[0]


def test_angle_in_theory_of_relu_is_the_arc_cosine_kernel():
    from studies.activations_without_norm.run import ALIKE, angle_in_theory

    c = ALIKE
    for apart in angle_in_theory("relu")[:20]:
        assert apart == pytest.approx(1 - c, rel=1e-2)
        c = (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi


@pytest.mark.slow
def test_dropout_variance_shift():
    runs = smoke("dropout_variance_shift")
    before, after = one(runs, place="before"), one(runs, place="after")
    assert before["shift"] == pytest.approx(before["theory"], rel=0.15) and before["shift"] < 0.6
    assert after["last"] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_adamw_clipping_xavier():
    from studies.adamw_clipping_xavier.run import bound

    runs = smoke("adamw_clipping_xavier")
    clipped, free = one(runs, clip=True), one(runs, clip=False)
    assert clipped["loss"] < free["loss"] and 0.7 * bound(40) < free["step"] < 1.6 * bound(40)
    assert bound(10**6) == pytest.approx(0.1 / 0.001**0.5)  # Kingma & Ba, once the corrections have faded


@pytest.mark.slow
def test_recurrent_layer_norm():
    runs = smoke("recurrent_layer_norm")
    assert one(runs, kind="plain")["loss"] > 2.2 > 1.5 > one(runs, kind="both")["loss"]


def test_clipping_limits():
    runs = smoke("clipping_limits")
    vanishing, orthogonal = one(runs, weights="vanishing"), one(runs, weights="orthogonal")
    assert vanishing["gradient"] < 1e-3 and orthogonal["gradient"] > 100 * vanishing["gradient"]
    assert vanishing["loss"] == pytest.approx(math.log(2), abs=0.1)


def test_length_warmup():
    from studies.length_warmup.run import LENGTH, SHORTEST, STEPS, WARMUP, lengths

    growing = lengths("warmup")
    assert (
        growing[0] == SHORTEST
        and growing == sorted(growing)
        and growing[WARMUP:] == [LENGTH] * (STEPS - WARMUP)
    )
    assert sorted(lengths("shuffled")) == growing != lengths("shuffled")
    assert len(pick(smoke("length_warmup"), part="length")) == 1


def test_a_negative_result_is_kept_as_one():
    saved = study_of("length_warmup").load()
    assert saved["passed"] is False and [v["passed"] for v in saved["values"]] == [True, True, False]


@pytest.mark.slow
def test_steady_optimizer():
    runs = smoke("steady_optimizer")
    for net in ("CNN", "LSTM"):
        mine, adamw = (one(runs, net=net, optimizer=o) for o in ("steady", "AdamW"))
        assert mine["apart"] < 1.3 < adamw["apart"] and mine["loss"] < 2.3


def test_precision_headroom():
    (run,) = smoke("precision_headroom")
    assert run["error"] < 0.1 < run["mixed"] and run["overflow"] == 0


def test_collapse():
    runs = smoke("collapse")
    sound, wrong = one(runs, kind="sound"), one(runs, kind="wrong")
    assert sound["alarms"] == 0 and wrong["told"][0] == "E101" and wrong["found_after"] < 0.4
    assert sound["spread"][-1] > 0.9 and wrong["spread"][-1] < 0.1
