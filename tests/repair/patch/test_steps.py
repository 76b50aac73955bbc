# ruff: noqa: E501 - lines of scripts
"""What is put around the step and the backward pass."""

from __future__ import annotations

from typing import Any

import pytest

from steadygrad.repair.patch import NoPatch
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

POISONED = plain("torch.optim.Adam(model.parameters(), lr=1e-2)").replace(
    "    loss = ((model(x) - y) ** 2)",
    "    batch = x.clone()\n    if step in (2, 5): batch[0, 0] = float('nan')\n    loss = ((model(batch) - y) ** 2)",
)
SPIKES = (
    plain()
    .replace("range(12)", "range(40)")
    .replace(
        "    loss = ((model(x) - y) ** 2).mean()",
        "    loss = ((model(x) - y) ** 2).mean() * (50.0 if step in (15, 25, 26, 27, 28, 35) else 1.0)",
    )
)
NORMED = POISONED.replace("nn.ReLU(), ", "nn.BatchNorm1d(8), nn.ReLU(), ")

GAN = """\
import torch
from torch import nn


def main():
    a, b = nn.Linear(3, 4), nn.Linear(4, 1)
    one = torch.optim.SGD(a.parameters(), lr=0.1)
    two = torch.optim.Adam(b.parameters(), lr=0.01)
    x = torch.randn(8, 3)
    for step in range(6):
        one.zero_grad()
        loss = (b(a(x)) ** 2).mean()
        loss.backward()
        one.step()
        two.zero_grad()
        again = ((b(a(x).detach()) - 1) ** 2).mean()
        again.backward()
        two.step()
        losses.extend([loss.item(), again.item()])
    return a, b


losses = []
a, b = main()
"""
ACCUMULATED = (
    plain()
    .replace("    optimizer.zero_grad()\n", "")
    .replace(
        "    optimizer.step()\n",
        "    if step % 2:\n        optimizer.step()\n        optimizer.zero_grad()\n",
    )
)
FORGETFUL = plain().replace("    optimizer.zero_grad()\n", "")
CLOSURE = plain("torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)").replace(
    "    optimizer.zero_grad()\n    loss = ((model(x) - y) ** 2).mean()\n    loss.backward()\n    optimizer.step()\n",
    "    def closure():\n        optimizer.zero_grad()\n        loss = ((model(x) - y) ** 2).mean()\n"
    "        loss.backward()\n        return loss\n    loss = optimizer.step(closure)\n",
)
CLOSURE_ADAM = CLOSURE.replace(
    "LBFGS(model.parameters(), lr=0.1, max_iter=3)", "Adam(model.parameters(), lr=0.1)"
)
SCALED = plain(more="scaler = torch.amp.GradScaler('cpu', init_scale=64.0)").replace(
    "loss.backward()\n    optimizer.step()\n",
    "scaler.scale(loss).backward()\n    scaler.step(optimizer)\n    scaler.update()\n",
)
UNSCALED = SCALED.replace("    scaler.step(", "    scaler.unscale_(optimizer)\n    scaler.step(")
METHOD = """\
import torch


class Trainer:
    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def fit(self, x, losses):
        for _ in range(5):
            self.opt.zero_grad(); self.loss = (self.model(x) ** 2).mean(); self.loss.backward(); self.opt.step()
            losses.append(self.loss.item())


losses, model = [], torch.nn.Linear(3, 2)
Trainer(model).fit(torch.randn(8, 3), losses)
"""

CHECKED: list[tuple[str, str, dict[str, Any], str]] = [
    ("clip", plain(), {"clip_norm": 0.5}, "clip_grad_norm_("),
    ("clip by value", plain(), {"clip_value": 0.5}, "clip_grad_value_("),
    ("clip both", GAN, {"clip_norm": 0.1}, "for group in two.param_groups"),
    ("clip in a method", METHOD, {"clip_norm": 0.1}, "for group in self.opt.param_groups"),
    ("clip, scaled", SCALED, {"clip_norm": 0.5}, "    scaler.unscale_(optimizer)\n    torch.nn.utils"),
    ("clip, unscaled", UNSCALED, {"clip_norm": 0.5}, "    scaler.unscale_(optimizer)\n    torch.nn.utils"),
    ("clip in a closure", CLOSURE_ADAM, {"clip_norm": 0.5}, "        loss.backward()\n        torch.nn.utils"),
    ("skip", POISONED, {"skip_nonfinite": 1}, "    if is_sound(optimizer, loss):\n        optimizer.step()"),
    ("skip, buffers", NORMED, {"skip_nonfinite": 1}, "with_kept_buffers(torch.optim.Adam(model.parameters(), lr=1e-2), model)"),
    ("skip and clip", POISONED, {"skip_nonfinite": 1, "clip_norm": 0.5}, "    if is_sound(optimizer, loss):\n        torch.nn"),
    ("skip spikes", SPIKES, {"skip_above": 8.0}, "def is_usual("),
    ("skip spikes and clip", SPIKES, {"skip_above": 8.0, "skip_nonfinite": 1, "clip_norm": 3.0}, "most=8.0"),
    ("factor", plain(), {"gradient_factor": 0.1}, "(loss * 0.1).backward()"),
    ("factor of a sum", plain().replace("loss.b", "(loss + 1).b"), {"gradient_factor": 0.1}, "((loss + 1) * 0.1).backward()"),
    ("factor, scaled", SCALED, {"gradient_factor": 0.1}, "(scaler.scale(loss) * 0.1).backward()"),
    ("factor of two", GAN, {"gradient_factor": 0.1}, "(again * 0.1).backward()"),
    (
        "factor of a function",
        plain().replace("loss.backward()", "torch.autograd.backward(loss)"),
        {"gradient_factor": 0.1},
        "backward(loss * 0.1)",
    ),
    ("zero", FORGETFUL, {"zero_gradients": 1}, "    optimizer.step()\n    optimizer.zero_grad()\n"),
    ("zero, two", GAN.replace("        two.zero_grad()\n", ""), {"zero_gradients": 1}, "two.step()\n        one.zero_grad()"),
    ("weights of a critic", GAN, {"weight_clip": {"max": 0.05, "optimizer": 1}}, "with_clamped_weights(torch.optim.Adam"),
    ("weights", plain(), {"weight_clip": {"max": 0.2}}, "with_clamped_weights("),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plan", "line"), [c[1:] for c in CHECKED], ids=[c[0] for c in CHECKED])
def test_the_patched_run_is_the_arm(folder: Folder, text: str, plan: dict[str, Any], line: str) -> None:
    folder.write(text)
    assert line in folder.check(plan).source


def test_gradients_that_are_gathered_stay_gathered(folder: Folder) -> None:
    folder.write(ACCUMULATED)
    patch = folder.patch({"clip_norm": 0.5})
    assert "if step % 2:\n        torch.nn.utils.clip" in patch.source
    folder.check({"clip_norm": 0.5})


def test_a_closure_that_is_called_often_is_not_guarded(folder: Folder) -> None:
    folder.write(CLOSURE)
    with pytest.raises(NoPatch, match="steps with a closure"):
        folder.patch({"skip_nonfinite": 1})


def test_a_loss_without_a_name_leaves_the_gradients_to_be_looked_at(folder: Folder) -> None:
    folder.write(POISONED.replace("loss.backward()", "(loss + torch.zeros(())).backward()"))
    patch = folder.check({"skip_nonfinite": 1})
    assert "is_sound(optimizer):" in patch.source and "no name" in patch.notes[0]


def test_a_loss_that_runs_backward_in_a_branch_is_looked_at(folder: Folder) -> None:
    folder.write(
        POISONED.replace("    loss.backward()", "    if step < 0: pass\n    else:\n        loss.backward()")
    )
    assert "is_sound(optimizer, loss)" in folder.check({"skip_nonfinite": 1}).source


def test_the_guard_looks_at_a_loss_whose_gradients_are_finite(folder: Folder) -> None:
    hidden = POISONED.replace("batch[0, 0] = float('nan')", "pass").replace(
        "    loss.backward()",
        "    loss = loss + (float('nan') if step in (2, 5) else 0.0)\n    loss.backward()",
    )
    folder.write(hidden)
    assert "is_sound(optimizer, loss)" in folder.check({"skip_nonfinite": 1}).source
