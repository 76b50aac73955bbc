"""The docstrings hold what a docs card needs, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import steadygrad.optim as room

PUBLIC = {
    n: getattr(room, n)
    for n in vars(room)
    if not n.startswith("_") and not inspect.ismodule(getattr(room, n))
}
METHODS = [
    "LARS",
    "LAMB",
    "NovoGrad",
    "Fromage",
    "Nero",
    "AdamAtan2",
    "Scion",
    "MuonAdamW",
    "Steady",
    "steady",
    "BoundedUpdates",
    "clip_update_ratio_",
]


@pytest.mark.parametrize("name", METHODS)
def test_card(name):
    text = inspect.getdoc(PUBLIC[name])
    parts = ["When to use it:", "Values in use:", "Cost:", "Args:", "Example:", "Source:"]
    places = [text.find(part) for part in parts]
    assert min(places) > 0 and places == sorted(places), dict(zip(parts, places, strict=True))
    assert "https://" in text.split("Source:")[1] and "nan" in text
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert f"{argument}: " in text.split("Args:")[1], f"{name} does not explain {argument}"


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(room.__path__)])
def test_examples_run(module):
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(importlib.import_module(f"steadygrad.optim.{module}"), optionflags=flags)
    assert result.failed == 0


def test_every_public_name_has_a_docstring():
    assert len(PUBLIC) == 24 and all(inspect.getdoc(f) for f in PUBLIC.values())


def test_every_optimizer_is_in_the_conformance_suite():
    from tests.optim.cases import OPTIMIZERS

    made = {c.cls for c in OPTIMIZERS}
    assert made == {f for f in PUBLIC.values() if inspect.isclass(f) and issubclass(f, torch.optim.Optimizer)}
