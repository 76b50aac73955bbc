"""The examples in the docstrings run, and every public name has one or states its source."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import steadygrad.init

MODULES = [m.name for m in pkgutil.iter_modules(steadygrad.init.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"steadygrad.init.{name}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = doctest.testmod(module, extraglobs={"torch": torch, "nn": torch.nn})
    assert result.failed == 0


def test_public_names_are_documented():
    public = [n for n in vars(steadygrad.init) if not n.startswith("_") and n not in MODULES]
    for name in (*public, "audit", "follow", "initialise"):
        value = getattr(steadygrad.init, name)
        if callable(value) and not isinstance(value, type):
            assert "Source:" in value.__doc__ or "Example:" in value.__doc__, name
    for scheme in steadygrad.init.SCHEMES.values():
        assert "When to use it:" in scheme.__doc__
