"""The docstrings hold what a docs card needs."""

from __future__ import annotations

import inspect

import pytest

import steadygrad.schedule as room

HELPERS = {
    "accumulation_steps",
    "effective_lr",
    "lr_factors",
    "linear_cooldown",
    "sqrt_cooldown",
    "cosine_cooldown",
}
PUBLIC = {
    n: getattr(room, n)
    for n in vars(room)
    if not n.startswith("_") and not inspect.ismodule(getattr(room, n))
}


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - HELPERS))
def test_card(name):
    text = inspect.getdoc(PUBLIC[name])
    parts = ("When to use it:", "Values in use:", "Cost:", "Args:", "Example:", "Source:")
    places = [text.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)
    assert "https://" in text.split("Source:")[1]
    assert "nan" in text or "no whole number" in text or "no whole numbers" in text
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert f"{argument}: " in text.split("Args:")[1], f"{name} does not explain {argument}"


def test_every_public_name_has_a_docstring():
    assert len(PUBLIC) == 45 and all(inspect.getdoc(f) for f in PUBLIC.values())
