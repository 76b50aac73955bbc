"""The tiers of the probe."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad import config
from steadygrad.probe.rotation import Rotation
from steadygrad.probe.tiers import CHEAP, DEEP, STANDARD, TIERS


def test_each_tier_looks_at_least_as_often_as_the_one_before():
    assert list(TIERS) == ["cheap", "standard", "deep"] and list(TIERS.values()) == [CHEAP, STANDARD, DEEP]
    for name in ("rotation", "state_turns", "state_every", "activation_every", "portrait_every"):
        often = [getattr(tier, name) for tier in TIERS.values()]
        assert often == sorted(often, reverse=True)


def test_the_cheap_one_is_what_a_rotation_does_by_itself():
    rotation = Rotation()
    assert (rotation.num_parts, rotation.state_turns) == (CHEAP.rotation, CHEAP.state_turns)


def test_the_table_of_the_docs_says_what_the_tiers_are():
    (cheap,) = [line for line in type(CHEAP).__doc__.splitlines() if line.strip().startswith("cheap")]
    assert cheap.split()[2] == f"{CHEAP.rotation}th"
    assert [int(word) for word in cheap.split() if word.isdigit()] == [
        CHEAP.state_every,
        CHEAP.activation_every,
        CHEAP.portrait_every,
    ]


def test_a_tier_cannot_be_changed_nor_be_empty():
    with pytest.raises(FrozenInstanceError):
        CHEAP.rotation = 1
    with pytest.raises(ValueError, match="portrait_every must be at least 1, got 0"):
        replace(CHEAP, portrait_every=0)


class Kept:
    """An observer that keeps the records of the steps."""

    def __init__(self):
        self.steps = []

    def step(self, stats, skipped, incidents):
        self.steps.append(stats)

    def started(self, run_dir): ...
    def finding(self, finding): ...
    def action(self, action): ...
    def note(self, text): ...


def looked_at(tier, runs):
    """For each step: parameters looked at closely, modules with activations, and whether there was a portrait."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(16)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    kept = Kept()
    with sg.watch(model, optimizer, runs=runs, observer=kept, tier=tier):
        for _ in range(48):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
    return [
        (len({t.param for t in s.tensors}), len(s.activations), s.portrait is not None) for s in kept.steps
    ]


def test_a_watched_run_is_looked_at_as_its_tier_says(tmp_path):
    cheap, standard, deep = (looked_at(tier, tmp_path) for tier in TIERS)
    assert all(params == 32 and activations for params, activations, _ in deep)
    totals = [sum(params for params, *_ in run) for run in (cheap, standard, deep)]
    assert totals == [3 * 32, 6 * 32, 48 * 32]
    portraits = [[i for i, (*_, portrait) in enumerate(run) if portrait and i >= 20] for run in (cheap, deep)]
    assert portraits == [[20], [20, 30, 40]]
    assert [i for i, (_, activations, _) in enumerate(standard) if activations and i > 20] == [30, 40]


def test_names_are_the_same_wherever_a_tier_is_set(tmp_path):
    assert tuple(TIERS) == config.TIERS
    layer = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="cheap, standard, deep, got 'deeper'"):
        sg.watch(layer, torch.optim.SGD(layer.parameters(), lr=0.1), runs=tmp_path, tier="deeper")
