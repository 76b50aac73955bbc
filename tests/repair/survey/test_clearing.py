"""Steps that a zero_grad has left without gradients are counted, and told with the lines that did it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from steadygrad.repair.survey.clearing import Clearing
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

EARLY = plain().replace("    optimizer.zero_grad()\n", "")
needs_columns = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 tells lines only")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


def found(folder: Folder, text: str) -> dict[str, Any]:
    folder.write(text)
    survey = dict(folder.survey().get("clearing", {}))
    assert json.loads(json.dumps(survey)) == survey
    return survey


def text(folder: Folder, place: dict[str, Any]) -> str:
    first, start, last, end = place["span"]
    assert place["file"] == "train.py" and first == last == place["line"]
    return folder.script.read_text().splitlines()[first - 1][start:end]


@needs_columns
@pytest.mark.parametrize(
    "clear", ["optimizer.zero_grad()", "optimizer.zero_grad(set_to_none=False)", "model.zero_grad()"]
)
def test_the_steps_are_counted_and_the_lines_told(folder: Folder, clear: str) -> None:
    survey = found(folder, EARLY.replace("    optimizer.step()", f"    {clear}\n    optimizer.step()"))
    assert survey["steps"] == 12
    (told,) = survey["clears"]
    assert text(folder, told["place"]) == clear
    assert [text(folder, p) for p in told["steps"]] == ["optimizer.step()"]


@needs_columns
def test_every_line_that_clears_is_told_and_the_right_one_is_not(folder: Folder) -> None:
    wrong = "    optimizer.zero_grad()\n    model.zero_grad()\n    optimizer.step()"
    survey = found(folder, plain().replace("    optimizer.step()", wrong))
    assert [text(folder, c["place"]) for c in survey["clears"]] == [
        "optimizer.zero_grad()",
        "model.zero_grad()",
    ]
    assert survey["clears"][0]["place"]["line"] > 11, "not the one at the head of the loop"


@pytest.mark.parametrize(
    "script",
    [
        plain(),
        EARLY,
        EARLY.replace("optimizer.step()", "optimizer.step()\n    optimizer.zero_grad()"),
        plain().replace("loss.backward()", "loss.backward()\n    optimizer.zero_grad()\n    model(x).sum().backward()"),
        plain().replace("loss.backward()", "pass"),
        plain().replace("optimizer.step()", "(model.zero_grad() if step == 5 else None); optimizer.step()"),
    ],
)  # fmt: skip
def test_nothing_is_told_where_steps_have_gradients_or_no_pass_was_made(folder: Folder, script: str) -> None:
    assert found(folder, script) == {}


def test_it_changes_nothing_and_takes_everything_away() -> None:
    before = Optimizer.zero_grad, nn.Module.zero_grad
    surveyor = Clearing()
    surveyor.install()
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    surveyor.backward([], [])
    layer(torch.ones(1, 2)).sum().backward()
    weights = layer.weight.detach().clone()
    optimizer.zero_grad()
    surveyor.before_step(optimizer)
    optimizer.step()
    surveyor.undo_step()
    surveyor.remove()
    assert layer.weight.grad is None and torch.equal(layer.weight, weights)
    assert surveyor.found()["steps"] == 1
    assert (Optimizer.zero_grad, nn.Module.zero_grad) == before
