"""Each published claim: a version of seconds measures what the full one does, and what was saved is its verdict."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import pytest

from studies.claim import pick
from studies.fits import exponent

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = sorted(path.parent.name for path in STUDIES.glob("*/run.py"))
CLAIMS = [name for name in NAMES if name not in ("depth", "combinations")]


def study_of(name):
    return import_module(f"studies.{name}.run").STUDY


def smoke(name):
    study = study_of(name)
    return list(study.carry_out(study.jobs(smoke=True), smoke=True))


def one(runs, **arm):
    (found,) = pick(runs, **arm)
    return found


def test_glorot_gradients():
    runs = smoke("glorot_gradients")
    usual, normalised = one(runs, init="usual"), one(runs, init="normalised")
    assert usual["factor"] == pytest.approx(3**-0.5, abs=0.02) and usual["traced"] == pytest.approx(
        3**-0.5, abs=0.04
    )
    assert normalised["factor"] == pytest.approx(0.99, abs=0.03)
    assert abs(usual["shuffled"] - 3**-0.5) > 0.1
    assert usual["off"] > 20 and normalised["off"] == 0


def test_he_depth():
    runs = smoke("he_depth")
    xavier, he = one(runs, init="xavier", depth=30), one(runs, init="he", depth=30)
    assert xavier["signal"] == pytest.approx(2**-0.5, abs=0.06) and he["signal"] == pytest.approx(1, abs=0.08)
    assert xavier["loss"] == pytest.approx(math.log(10), abs=0.05)
    assert one(runs, init="he", depth=10)["loss"] < 1.2 < one(runs, init="xavier", depth=10)["loss"]


def test_order_to_chaos():
    from studies.order_to_chaos.run import crossing

    runs = smoke("order_to_chaos")
    assert all(abs(run["off"]) < 0.06 for run in runs)
    assert [run["fate"] for run in runs[::4]] == ["vanishes", "explodes"]
    assert crossing(runs) == pytest.approx(1.76, abs=0.25)
    assert crossing(runs[3:]) != crossing(runs[3:])  # nothing is crossed above it


def test_layer_norm_placement():
    runs = smoke("layer_norm_placement")
    powers = {
        p: exponent(
            [r["depth"] for r in pick(runs, part="gradient", placement=p)],
            [r["norm"] for r in pick(runs, part="gradient", placement=p)],
        )
        for p in ("pre", "post")
    }
    assert -0.8 < powers["pre"] < -0.25 and abs(powers["post"]) < 0.2
    assert one(runs, part="forecast")["warned"] == 1


def test_edge_of_stability():
    runs = smoke("edge_of_stability")
    stable, large = one(runs, lr=0.2), one(runs, lr=0.4)
    assert 0.9 < stable["edge"] < 1.15 and stable["loss"] < 0.2
    assert large["flagged"] == 1 and not math.isfinite(large["loss"]) and large["times_limit"] > 2
    adam = one(runs, optimizer="adam")
    assert adam["curve"] == sorted(adam["curve"]) and adam["raw"] < 0.1 * adam["edge"]


def test_preconditioned_sharpness_is_that_of_the_scaled_hessian():
    """A diagonal quadratic, where it is known: curvature over Adam's P."""
    import torch

    import steadygrad as sg
    from studies.edge_of_stability.run import preconditioned

    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, curvature):
            return 0.5 * (curvature * self.weight.square()).sum()

    model, curvature = torch.nn.Sequential(Quadratic()), torch.tensor([3.0, 8.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    model(curvature).backward()
    optimizer.step()
    wanted = max(
        c / (0.1 * abs(c * w)) for c, w in ((3.0, 1.0), (8.0, 2.0))
    )  # |g| after one step, times 1 - beta1
    found = sg.forecast(preconditioned(model, optimizer), lambda m, batch: m(batch), curvature).sharpness
    assert found == pytest.approx(wanted, rel=0.01)


def test_recurrent_clipping():
    runs = smoke("recurrent_clipping")
    for run in pick(runs, part="growth"):
        assert run["factor"] == pytest.approx(run["radius"], abs=0.005)
    lost = {run["rule"]: run["loss"] for run in pick(runs, part="recall")}
    assert lost["clipping"] < 0.2 and lost["adaptive"] < 0.2 and lost["nothing"] > 1


def test_batch_norm_rate():
    runs = smoke("batch_norm_rate")
    assert one(runs, norm="batch")["accuracy"] > 0.9
    assert one(runs, norm="none")["accuracy"] < 0.6 and one(runs, norm="frozen")["accuracy"] < 0.6


def test_degradation():
    runs = smoke("degradation")
    plain, deep = one(runs, kind="plain", depth=10)["loss"], one(runs, kind="plain", depth=40)["loss"]
    assert deep > 2 > 1 > plain and one(runs, kind="residual")["loss"] < deep


def test_selu_fixed_point():
    runs = smoke("selu_fixed_point")
    selu = one(runs, activation="selu")
    assert selu["moment"] == pytest.approx(1, abs=0.2) and abs(selu["mean"]) < 0.1
    assert one(runs, activation="relu")["moment"] < 1e-6


def test_dynamical_isometry():
    runs = smoke("dynamical_isometry")
    kept, lost = (one(runs, part="spectrum", init=i) for i in ("orthogonal", "gaussian"))
    assert kept["condition"] < 1.001 and lost["to_median"] > 1e6
    orthogonal, gaussian = (one(runs, part="training", init=i)["loss"] for i in ("orthogonal", "gaussian"))
    assert orthogonal < 2.05 < gaussian


def test_stale_second_moment():
    (stale,) = smoke("stale_second_moment")
    assert stale["alarm"] == 0 and 1 <= stale["lead"] <= 8 and stale["rms"] > 2.3


def test_silent_corruption():
    runs = smoke("silent_corruption")
    assert one(runs, faults="bit", again="always")["other_weights"] == 0
    assert one(runs, faults="none")["told_wrongly"] == 0
    once, again = (one(runs, faults="row", again=a) for a in ("never", "on alarm"))
    assert again["found"] == again["planted"] and again["other_weights"] == 0 and once["other_weights"] > 0


@pytest.mark.slow
def test_homeostasis():
    runs = smoke("homeostasis")
    regulated, clipped = one(runs, how="homeostasis", part="deep"), one(runs, how="clipping")
    assert regulated["score"] > 0.6 > 0.3 > clipped["score"] and regulated["top"] < 3
    assert one(runs, part="recurrent")["top"] < 20


def test_adaptive_norm():
    for run in smoke("adaptive_norm"):
        assert math.isfinite(run["tested"]) and run["milliseconds"] > 0
        if run["norm"] == "adaptive":
            assert sum(run["mix"]) == pytest.approx(1, abs=0.01) and run["gain"] != 1


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_seeds_a_control_and_its_paper(name):
    study = study_of(name)
    assert len(study.seeds) >= 3 and any(v.control for v in study.values) and study.picture.exists()
    said = (STUDIES / name / "README.md").read_text()
    assert (
        all(f"**{part}.**" in said for part in ("Claim", "Source", "Set-up", "Verdict"))
        and "https://" in said
    )


@pytest.mark.parametrize("name", NAMES)
def test_saved_verdict_is_that_of_the_saved_runs(name):
    study, saved = study_of(name), study_of(name).load()
    assert [study.key_of(run) for run in saved["runs"]] == [study.key_of(job) for job in study.jobs()]
    judged = [vars(value) for value in study.judge(saved["runs"])]
    assert [v["name"] for v in judged] == [v["name"] for v in saved["values"]]
    assert [v["passed"] for v in judged] == [v["passed"] for v in saved["values"]]
    assert saved["passed"] is all(v["passed"] for v in judged)


@pytest.mark.parametrize("name", CLAIMS)
def test_picture_labels_its_axes(name):
    study = study_of(name)
    figure = study.draw(study.load()["runs"])
    assert (
        figure.get_suptitle()
        and all(axis.get_xlabel() for axis in figure.axes)
        and figure.axes[0].get_ylabel()
    )
