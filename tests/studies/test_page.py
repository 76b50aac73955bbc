"""The page of the studies quotes what was saved."""

import importlib
from pathlib import Path

import pytest

from studies.depth.nets import ROWS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate_studies")


def test_is_fresh(page):
    assert (ROOT / "docs" / "studies.md").read_text() == page.text(), "run: python docs/generate_studies.py"
    assert "{{" not in page.text()


def test_results_are_of_the_nets_and_factors_of_now(page):
    from studies.combinations import run

    cells = page.results("depth")["cells"]
    found = {(c["net"], c["depth"], c["init"]) for c in cells}
    assert len(found) == len(cells)
    assert found == {
        (net, depth, init) for net, row in ROWS.items() for depth in row.depths for init in row.inits
    }
    saved = page.results("combinations")
    assert {k: tuple(v) for k, v in saved["factors"].items()} == run.FACTORS
    assert len(saved["runs"]) == 64 * len(run.SEEDS) * len(run.NETS)
