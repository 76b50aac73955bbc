"""The locator of a live run: nothing until something is not finite, then the line."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import steadygrad as sg

HERE = Path(__file__).name


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x, bad):
        h = self.body(x)
        if bad == "log":
            h = (h * 0).log()  # LOG
        elif bad == "root":
            h = h + (h * 0).sqrt()  # ROOT
        else:
            h = h.abs().log1p() if bad is None else h.softmax(-1)  # GOOD
        return self.head(h)


def line(mark):
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, text in enumerate(lines, 1) if text.endswith(f"# {mark}"))


def train(tmp_path, bad_at, *, guard="on", watched=True, steps=12):
    """Losses of a run in which ``bad_at(step)`` says what goes wrong, and its summary."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = sg.watch(model, optimizer, guard=guard, runs=tmp_path) if watched else None
    losses = []
    for step in range(steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x, bad_at(step)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    summary = run.close() if run is not None else None
    assert _get_current_dispatch_mode() is None
    return losses, summary, model


def test_a_healthy_run_is_never_watched_closer(tmp_path):
    losses, summary, model = train(tmp_path, lambda step: None)
    plain, _, other = train(tmp_path, lambda step: None, watched=False)
    assert summary.first_nonfinite is None and losses == plain
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_once_and_never_again_in_the_forward_pass(tmp_path):
    """The graph of the bad step says what; the same operation in the next step has the line."""
    _, summary, _ = train(tmp_path, lambda step: "log" if step in (5, 6) else None)
    found = summary.first_nonfinite
    assert (found.kind, found.op, found.step) == ("forward", "log", 5)
    assert (Path(found.file).name, found.line) == (HERE, line("LOG"))


def test_at_every_step_in_the_backward_pass(tmp_path):
    _, summary, _ = train(tmp_path, lambda step: "root" if step >= 3 else None)
    found = summary.first_nonfinite
    assert (found.kind, found.op, found.step) == ("backward", "sqrt", 3)
    assert (Path(found.file).name, found.line) == (HERE, line("ROOT"))


def test_heirs_of_poisoned_weights_are_not_blamed(tmp_path):
    """Without a guard the weights are NaN after the step: what the next step does to them is no producer."""
    losses, summary, _ = train(tmp_path, lambda step: "root" if step == 3 else None, guard="off")
    assert math.isnan(losses[-1]) and summary.first_nonfinite is None


@pytest.mark.parametrize("guard", ["on", "off"])
def test_losses_are_the_same_while_it_watches(tmp_path, guard):
    """Steps that are not skipped go on as without us, watched operation by operation."""
    bad = lambda step: "log" if step == 11 else None  # noqa: E731
    losses, _, _ = train(tmp_path, bad, guard=guard)
    plain, _, _ = train(tmp_path, bad, watched=False)
    assert losses[:11] == plain[:11] and math.isnan(losses[11]) == math.isnan(plain[11])
