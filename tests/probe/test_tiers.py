"""The tiers of the probe."""

from dataclasses import FrozenInstanceError, replace

import pytest

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
