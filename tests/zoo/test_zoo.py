"""Every family builds the same run for the same seed, its twin differs by the fault, and runs are judged right."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from benchmarks.zoo import Family, Training, families, outcome
from benchmarks.zoo.__main__ import chosen, line, summary
from benchmarks.zoo.family import failing
from benchmarks.zoo.rows import Task, run

FAMILIES = families()
FAILING = [f for f in FAMILIES if not f.healthy]
CAUSES = {
    "lr_too_large",
    "lr_too_small",
    "momentum_too_large",
    "warmup_missing",
    "init_gain_large",
    "init_gain_small",
    "output_scale",
    "residual_accumulation",
    "vanishing",
    "dead_units",
    "saturation",
    "unscaled_inputs",
    "unscaled_targets",
    "bad_batch",
    "unsafe_op",
    "low_precision",
    "loss_reduction",
    "stale_second_moment",
    "loop_mistake",
    "data_shift",
}
# the fault lies in the weights themselves
OF_WEIGHTS = {
    "init_gain_large",
    "init_gain_small",
    "output_scale",
    "vanishing",
    "dead_units",
    "saturation",
    "recurrent_growth",
    "attention_logit_growth",
}


@cache
def built(family: Family, fixed: bool = False) -> Training:
    return family.build(1, fixed)


def same(a, b) -> bool:
    """Equal through tensors, arrays, tuples, lists and dicts; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and torch.equal(a.isnan(), b.isnan())
            and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_same_seed_same_run(family):
    one, two = built(family), family.build(1)
    assert same(one.model.state_dict(), two.model.state_dict())
    for name in ("facts", "at", "where", "steps", "target"):
        assert getattr(one, name) == getattr(two, name), name
    assert same(one.optimizer.state_dict()["param_groups"], two.optimizer.state_dict()["param_groups"])
    assert one.steps > 0 and np.isfinite(one.target)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_batch_is_its_number(family):
    """Whatever was asked before, and without touching the global generator."""
    one, two = built(family), family.build(1)
    state = torch.get_rng_state()
    late = two.batch(7)
    assert same(one.batch(2), two.batch(2))
    assert same(one.batch(7), late)
    assert same(one.batch(7), late)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", FAILING, ids=lambda f: f.name)
def test_twin_differs_by_the_fault_only(family):
    faulty, twin = built(family), built(family, True)
    assert (faulty.facts, faulty.steps, faulty.at) == (twin.facts, twin.steps, twin.at)
    ours, theirs = faulty.model.state_dict(), twin.model.state_dict()
    shared = [k for k in ours if k in theirs]
    assert [ours[k].shape for k in shared] == [theirs[k].shape for k in shared]
    assert shared
    changed = [k for k in shared if not torch.equal(ours[k], theirs[k].to(ours[k].dtype))]
    assert not changed or family.causes[0] in OF_WEIGHTS
    if faulty.where and faulty.where != "loss" and family.causes[0] in OF_WEIGHTS:
        assert all(k.startswith(faulty.where) for k in changed)


@pytest.mark.parametrize("family", FAILING, ids=lambda f: f.name)
def test_the_place_of_the_fault_exists(family):
    training = built(family)
    names = {n for n, _ in training.model.named_modules()} | {n for n, _ in training.model.named_parameters()}
    assert training.where in names | {"loss", ""}
    assert training.at is None or 0 < training.at < training.steps


def test_seeds_are_drawn_anew():
    family = next(f for f in FAMILIES if f.name == "schedule_jump")
    assert len({(f.at, f.facts["factor"]) for f in map(family.build, range(5))}) == 5


def test_causes_are_covered_and_some_of_each_are_kept_blind():
    by_cause: dict[str, list[bool]] = {}
    for family in FAILING:
        by_cause.setdefault(family.causes[0], []).append(family.blind)
    assert CAUSES <= by_cause.keys()
    assert len(FAILING) >= 60
    for cause, blind in by_cause.items():
        assert len(blind) < 2 or (any(blind) and not all(blind)), cause
    share = sum(f.blind for f in FAILING) / len(FAILING)
    assert 0.25 < share < 0.45
    assert set(families(blind=True)).isdisjoint(families(blind=False))
    assert len(families(blind=True)) + len(families(blind=False)) == len(FAMILIES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd_lr_large", "nonfinite"), ("adam_lr_small", "stuck")],
)
def test_a_fault_fails_and_its_twin_trains(name, kind):
    faulty, twin = run(Task(name, 0, twin=True))
    assert faulty["kind"] == kind and not faulty["fixed"]
    assert twin["kind"] == "trained" and twin["fixed"]
    assert summary([faulty, twin])["faulty_failed"] == summary([faulty, twin])["twins_trained"] == 1
    json.dumps([faulty, twin], allow_nan=False)
    assert name in line([faulty, twin]) and kind in line([faulty, twin])


def falling(
    lr: float, target: float = 1e-3, loss=lambda model, batch: model.weight.square().sum()
) -> Training:
    """One weight at 1 under its own square: w goes to (1 - 2 lr) w."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return Training(
        model,
        SGD(model.parameters(), lr=lr),
        loss,
        lambda i: None,
        steps=40,
        score=lambda: float(model.weight.square().sum()),
        target=target,
    )


def test_judged_by_the_parabola():
    good = outcome(falling(0.25))  # halves each step
    assert good.kind == "trained" and good.trained
    assert good.first_loss == 1 and good.max_loss == 1 and good.steps == 40
    assert good.score == pytest.approx(0.25**40)
    assert good.last_loss == pytest.approx(0.25**29, rel=1e-3)  # the larger middle one of steps 20 to 39
    assert outcome(falling(0.0)).kind == "stuck"
    wild = outcome(falling(1.5))  # doubles each step
    assert wild.kind == "exploded" and wild.max_loss == pytest.approx(4.0**39)
    dead = outcome(falling(1e30))
    assert dead.kind == "nonfinite" and dead.first_nonfinite is not None and dead.steps < 40


def test_a_run_is_left_once_its_weights_are_gone():
    undefined = falling(0.1, loss=lambda model, batch: (model.weight - 2).sqrt().sum())
    dead = outcome(undefined)
    assert (dead.kind, dead.steps, dead.first_nonfinite) == ("nonfinite", 3, 0)
    assert np.isnan(dead.last_loss)


def test_a_name_is_taken_once():
    def sgd_lr_large(random, seed, fixed):
        raise NotImplementedError

    with pytest.raises(AssertionError):
        failing("lr_too_large", net="mlp")(sgd_lr_large)


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="no family is called sgd_lr_lrage"):
        chosen(["sgd_lr_lrage"])
    assert [f.name for f in chosen(["zero_weights"])] == ["zero_weights"]
