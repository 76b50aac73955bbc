"""One optimizer has one guard: a second is refused by name, or takes over and says so."""

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.integrations.options import Options
from steadygrad.integrations.session import Session


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(8, 4)).square().mean().backward()
    optimizer.step()


def make():
    model = nn.Linear(4, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def test_the_error_names_both_and_the_first_goes_on(tmp_path):
    model, optimizer = make()
    with sg.watch(model, optimizer, runs=tmp_path, name="first") as run:
        words = "this SGD is watched already by sg.watch, run first-1, and sg.watch, run second-1 cannot watch it too"
        with pytest.raises(ValueError, match=words):
            sg.watch(model, optimizer, runs=tmp_path, name="second")
        step(model, optimizer)
        assert run.close().steps == 1
    assert [path.name for path in tmp_path.iterdir()] == ["first-1"]


def test_inside_of_steadygrad_run_the_scripts_own_watcher_wins_and_the_run_says_so(tmp_path):
    session = Session(Options(runs=str(tmp_path)), script="train.py")
    session.install()
    try:
        model, optimizer = make()
        with sg.watch(model, optimizer, runs=tmp_path, name="own") as run:
            step(model, optimizer)
        assert run.close().steps == 1
    finally:
        summary = session.close()
    assert summary.steps == 0
    assert summary.notes == ("sg.watch, run own-1 has taken an optimizer over and watches it alone",)
