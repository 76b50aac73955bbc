"""Sinks asked for from the outside: in a loop, on the command line, in the settings."""

import json

import pytest

import steadygrad as sg
from steadygrad import config
from steadygrad.sinks import PACKAGES, SinkNotInstalled, UnknownSink
from tests.commands import PYTHON, STEADYGRAD, call
from tests.integrations.trainings import NO_HARM, differences, unwatched
from tests.sinks.test_fan import Own

TRAIN = """
import random, torch
torch.manual_seed(0)
random.seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(30):
    optimizer.zero_grad()
    x = torch.randn(16, 8)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    if step == 20:
        loss = loss * float("nan")
    loss.backward()
    optimizer.step()
print(loss.item(), random.random(), torch.rand(1).item())
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


@pytest.mark.parametrize("kind", NO_HARM)
def test_a_healthy_run_is_bit_identical_with_a_sink(kind, tmp_path):
    plain, own = NO_HARM[kind](0, 50, unwatched), Own()

    def watched(models, optimizers):
        return sg.watch(models, *optimizers, runs=tmp_path, sink=own)

    assert differences(plain, NO_HARM[kind](0, 50, watched)) == []
    assert own.closed == 1 and len(own.steps) >= 50 and len(own.reports) == 1


def test_a_sink_that_raises_costs_a_note_in_the_summary(tmp_path):
    class Bad(Own):
        def flush(self):
            raise OSError("no")

    watchers = []

    def watched(models, optimizers):
        watchers.append(sg.watch(models, *optimizers, runs=tmp_path, sink=[Bad()]))
        return watchers[-1]

    plain = NO_HARM["mlp_dropout"](0, 50, unwatched)
    assert differences(plain, NO_HARM["mlp_dropout"](0, 50, watched)) == []
    assert watchers[0].close().steps == 50


def test_watch_says_before_the_run_what_cannot_be(tmp_path, monkeypatch):
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setitem(PACKAGES, "mlflow", "a_package_that_nobody_has")
    for sink, error in (("tb", UnknownSink), ("mlflow", SinkNotInstalled), (3, TypeError)):
        with pytest.raises(error):
            sg.watch(model, optimizer, runs=tmp_path, sink=sink)
    assert list(tmp_path.iterdir()) == []


def test_settings_name_the_same_sinks(tmp_path):
    assert set(config.SINKS) == set(PACKAGES)
    assert config.load(tmp_path, {"STEADYGRAD_SINKS": "wandb, mlflow"}) == {"sinks": ("wandb", "mlflow")}
    (tmp_path / "steadygrad.toml").write_text('sinks = ["trackio"]')
    assert config.load(tmp_path, {}) == {"sinks": ("trackio",)}
    (tmp_path / "steadygrad.toml").write_text("sinks = 3")
    with pytest.raises(config.ConfigError, match="sinks = 3 is not allowed; allowed: a list of tensorboard"):
        config.load(tmp_path, {})


def test_a_name_that_is_no_sink_is_bad_input(script):
    out = call([*STEADYGRAD, "run", "--sink", "tb", "train.py"], script)
    assert out.returncode == 2 and out.stdout == ""
    assert out.stderr.count("\n") == 1 and "tensorboard, wandb, mlflow, trackio" in out.stderr
    assert not (script / "runs").exists()


def test_tensorboard_from_the_command_line(script):
    pytest.importorskip("tensorboard")
    first = call([*STEADYGRAD, "run", "train.py"], script)
    out = call([*STEADYGRAD, "run", "--sink", "tensorboard", "--json", "out.json", "train.py"], script)
    assert (out.returncode, out.stdout) == (0, first.stdout), out.stderr
    assert json.loads((script / "out.json").read_text())["notes"] == []
    run = script / "runs" / "train-2"
    assert len(list(run.glob("tensorboard/events.*"))) == 1 and (run / "report.html").is_file()
    assert not (script / "runs" / "train-1" / "report.html").exists()


@pytest.mark.slow
def test_the_launcher_hands_the_sinks_on(script):
    pytest.importorskip("tensorboard")
    out = call([*STEADYGRAD, "run", "--sink", "tensorboard", "--", *PYTHON, "train.py"], script)
    assert out.returncode == 0, out.stderr
    assert len(list(script.glob("runs/train-1/tensorboard/events.*"))) == 1
    assert (script / "runs" / "train-1" / "report.html").is_file()
