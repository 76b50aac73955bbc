# ruff: noqa: E501 - lines of scripts
"""An optimizer is built behind the last change of its model, or from all that is trained."""

from __future__ import annotations

import pytest

from steadygrad.repair.patch import NoPatch
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

PLAN = {"own_parameters": 1}
BUILT = "optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)\n"
COPIED = plain(more="import copy\nmodel = copy.deepcopy(model)")
ANEW = plain(more="model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))")
SCHEDULED = plain(
    more="sched = torch.optim.lr_scheduler.StepLR(optimizer, 2)  # halves\nmodel[2] = nn.Linear(8, 1)",
    after="sched.step()",
)
BROKEN_LINES = plain(
    "torch.optim.SGD(\n    model.parameters(),\n    lr=1e-3,\n)",
    more="model.append(nn.Linear(1, 1))\nprint(model)",
).replace("model.append(nn.Linear(1, 1))", "model[2] = nn.Linear(8, 2)")
METHOD = """\
import torch
from torch import nn


class Trainer:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.opt = torch.optim.Adam({given}, lr=0.1){more}

    def fit(self, x, losses):
        for _ in range(5):
            self.opt.zero_grad()
            loss = (self.model(x) ** 2).mean()
            loss.backward()
            self.opt.step()
            losses.append(loss.item())
        return self.model


losses = []
model = Trainer().fit(torch.randn(8, 3), losses)
"""
HEAD = """\
import torch
from torch import nn


def train(net, head, optimizer):
    x = torch.randn(8, 3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = (head(net(x)) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


losses = []
body, top = nn.Linear(3, 4), nn.Linear(4, 1)
train(body, top, torch.optim.SGD(body.parameters(), lr=0.1))
"""
CHECKED = [
    ("copy", COPIED, "model = copy.deepcopy(model)\n" + BUILT),
    ("anew", ANEW, "nn.Linear(6, 1))\n" + BUILT),
    ("with its schedule", SCHEDULED, "model[2] = nn.Linear(8, 1)\n" + BUILT + "sched = torch.optim.lr_scheduler.StepLR(optimizer, 2)  # halves\nfor step"),
    ("broken lines", BROKEN_LINES, "nn.Linear(8, 2)\noptimizer = torch.optim.SGD(\n    model.parameters(),\n    lr=1e-3,\n)\nprint(model)\n"),
    ("in a method", METHOD.format(given="self.model.parameters()", more="\n        self.model[2] = nn.Linear(4, 2)\n        self.steps = 0"), "self.model[2] = nn.Linear(4, 2)\n        self.opt = torch.optim.Adam("),
    ("forgotten", plain("torch.optim.SGD(model[0].parameters(), lr=1e-3)"), "torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=1e-3)"),
    ("forgotten bias", plain("torch.optim.SGD([*model[0].parameters(), model[2].weight], lr=1e-3)"), "SGD([*[*model[0].parameters(), model[2].weight], model[2].bias], lr"),
    ("forgotten in a method", METHOD.format(given="self.model[0].parameters()", more=""), "[*self.model[0].parameters(), *self.model[2].parameters()]"),
    ("forgotten head", HEAD, "torch.optim.SGD([*body.parameters(), *top.parameters()], lr=0.1)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), [c[1:] for c in CHECKED], ids=[c[0] for c in CHECKED])
def test_the_patched_run_is_the_arm(folder: Folder, text: str, line: str) -> None:
    folder.write(text)
    assert line in folder.check(PLAN).source


LATE = plain(more="model.add_module('last', nn.Linear(1, 1))")
GROUPS = plain("torch.optim.SGD([{'params': model[0].parameters()}], lr=1e-3)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LATE, "where the model becomes another behind it cannot be told"),
        (GROUPS, "from groups"),
        (plain("torch.optim.SGD(list(model[0].named_parameters()), lr=1e-3)"), "with their names"),
        (COPIED.replace("optimizer = t", "first = 1; optimizer = t"), "has to come behind"),
        (plain(), "not known which parameters"),
    ],
)
def test_what_cannot_be_written_is_said(folder: Folder, text: str, reason: str) -> None:
    folder.write(text)
    with pytest.raises(NoPatch, match=reason) as error:
        folder.patch(PLAN)
    assert "build the optimizer behind the last line" in str(error.value)
