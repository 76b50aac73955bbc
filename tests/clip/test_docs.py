"""The docstrings hold what a docs card needs, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import steadygrad.clip as room

NO_RULES = {"ClipStats", "Chain", "chain", "unit_norm", "update_rms", "reset_momentum_", "warmup_factor"}
PUBLIC = {
    n: getattr(room, n)
    for n in vars(room)
    if not n.startswith("_") and not inspect.ismodule(getattr(room, n))
}
RULES = {n: f for n, f in PUBLIC.items() if n not in NO_RULES} | {"chain": room.chain}


@pytest.mark.parametrize("name", sorted(set(RULES) - {"chain"}))
def test_card(name):
    text = inspect.getdoc(RULES[name])
    missing = [
        part
        for part in (
            "When to use it:",
            "Values in use:",
            "Cost:",
            "Args:",
            "Empty, zero, nan:",
            "Example:",
            "Source:",
        )
        if part not in text
    ]
    assert not missing
    assert "https://" in text.split("Source:")[1]
    for argument in inspect.signature(RULES[name]).parameters:
        assert f"{argument}: " in text.split("Args:")[1], f"{name} does not explain {argument}"


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(room.__path__)])
def test_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"steadygrad.clip.{module}"))
    assert result.failed == 0


def test_every_public_name_has_a_docstring():
    assert len(PUBLIC) == 23 and all(inspect.getdoc(f) for f in PUBLIC.values())
