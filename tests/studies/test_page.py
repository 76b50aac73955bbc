"""The page of the studies quotes what was saved."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate_studies")


def test_is_fresh(page):
    assert (ROOT / "docs" / "studies.md").read_text() == page.text(), "run: python docs/generate_studies.py"
    assert "{{" not in page.text()


def test_results_are_of_the_factors_of_now(page):
    from studies.combinations import run

    saved = page.results("combinations")
    assert {k: tuple(v) for k, v in saved["factors"].items()} == run.FACTORS


def test_shows_every_claim(page):
    claims = {path.parent.name for path in (ROOT / "studies").glob("*/run.py")} - {"depth", "combinations"}
    assert claims == set(page.CLAIMS)
