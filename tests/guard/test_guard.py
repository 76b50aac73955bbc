import re

import torch
from torch import nn

import steadygrad as sg
from steadygrad.guard import guard


def notes(runs):
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with sg.watch(layer, optimizer, runs=runs) as run:
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(4, 2)).square().mean().backward()
            optimizer.step()
    return run.close().notes


def test_what_the_snapshots_take_is_told_unless_it_is_little(tmp_path, monkeypatch):
    assert notes(tmp_path) == ()
    monkeypatch.setattr(guard, "SMALL", 0)
    (note,) = notes(tmp_path)
    assert re.fullmatch(r"[1-4] snapshots in memory take 0\.00 GB", note)
