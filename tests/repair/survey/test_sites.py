"""Where a script builds, steps and differentiates, and how it calls its models."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from steadygrad.integrations.trial import Trial
from steadygrad.repair.survey.sites import Sites

SCRIPT = """\
import torch
from torch import nn


class Bundle:
    def __init__(self):
        self.net = nn.Linear(2, 1)


def build(m, lr):
    return torch.optim.SGD(
        m.net.parameters(), lr=lr
    )


bundle, nets = Bundle(), {"é": nn.BatchNorm1d(1)}
größe = build(bundle, 0.1); two = torch.optim.Adam(nets["é"].parameters())
sched = torch.optim.lr_scheduler.CosineAnnealingLR(größe, 5, eta_min=0.01)
scaler = torch.amp.GradScaler("cpu")
x = torch.randn(4, 2)
for step in range(4):
    nets["é"].eval(); loss = nets["é"](bundle.net(x)).sum(); scaler.scale(loss).backward()
    scaler.step(größe); scaler.update()
    two.param_groups[0]["lr"] = 0.1 / (1 + step); two.step()
    torch.autograd.backward(bundle.net(x).sum())
    sched.step()
    with torch.no_grad():
        bundle.net(x)
"""


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr=0.1", "-v", "5"])
    trial = Trial({}, survey=True, failed=fail)
    gc.collect()
    gc.freeze()
    trial.install()
    try:
        exec(compile(SCRIPT, str(tmp_path / "train.py"), "exec", dont_inherit=True), {"__name__": "__main__"})
    finally:
        trial.close()
    report = trial.report()
    assert report is not None
    return dict(report.survey["sites"])


def text(place: dict[str, Any]) -> str:
    """The expression at a place."""
    assert place["file"] == "train.py" and place["owner"] == "user"
    first, start, last, end = place["span"]
    lines = [line.encode() for line in SCRIPT.split("\n")[first - 1 : last]]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"\n".join(lines).decode()


needs_columns = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 tells lines only")


@needs_columns
def test_optimizers_are_told_with_where_they_are_built_and_step(found: dict[str, Any]) -> None:
    sgd, adam = found["optimizers"]
    assert (sgd["class"], sgd["torch"], sgd["groups"]) == ("SGD", True, 1)
    assert text(sgd["built"]).startswith("torch.optim.SGD(\n") and text(adam["built"]).startswith(
        "torch.optim.Adam(nets"
    )
    assert [(text(p), p["by"]) for p in sgd["steps"]] == [("scaler.step(größe)", "GradScaler")]
    assert [text(p) for p in adam["steps"]] == ["two.step()"]


def test_what_moves_the_rates_is_told(found: dict[str, Any]) -> None:
    sgd, adam = found["optimizers"]
    assert (
        sgd["schedulers"] == [{"class": "CosineAnnealingLR", "eta_min": 0.01}] and not sgd["lr_set_by_hand"]
    )
    assert adam["schedulers"] == [] and adam["lr_set_by_hand"]


@needs_columns
def test_models_are_told_by_the_names_that_they_have_where_their_optimizer_is_built(
    found: dict[str, Any],
) -> None:
    models = {m["prefix"]: (m["name"], m["buffers"]) for m in found["models"]}
    assert models == {"linear": ("m.net", False), "batch_norm1d": ("nets['é']", True)}
    assert found["models"][0]["place"] == found["optimizers"][0]["built"]


@needs_columns
def test_passes_forward_with_gradients_and_backward_are_told(found: dict[str, Any]) -> None:
    assert [text(p) for p in found["forward"]] == [
        "bundle.net(x)",
        'nets["é"](bundle.net(x))',
        "bundle.net(x)",
    ]
    assert [(text(p), p["by"]) for p in found["backward"]] == [
        ("scaler.scale(loss).backward()", "Tensor"),
        ("torch.autograd.backward(bundle.net(x).sum())", ""),
    ]


def test_options_are_told_by_name_alone(found: dict[str, Any]) -> None:
    assert found["flags"] == ["--lr", "-v"]


def test_an_optimizer_of_the_users_own_is_built_where_its_class_is_called() -> None:
    sites, add = Sites(), Optimizer.add_param_group
    sites.install()

    class Own(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)

    optimizer = Own(torch.nn.Linear(1, 1).parameters())
    line = sys._getframe().f_lineno - 1
    sites.remove()
    assert Optimizer.add_param_group is add
    (told,) = sites.found()["optimizers"]
    assert (told["class"], told["torch"], told["built"]["line"]) == (
        "Own",
        False,
        line,
    ) and optimizer is not None


def test_nothing_is_told_of_a_run_that_builds_no_optimizer() -> None:
    sites = Sites()
    sites.install()
    sites.remove()
    assert sites.found() == {}
