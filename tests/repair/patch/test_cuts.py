# ruff: noqa: E501 - lines of scripts
"""What cuts gradients off is taken out of the text; the patched script is the remedy, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from steadygrad.repair.patch import NoPatch, write_patch
from tests.repair.patch.running import Folder

SCRIPT = """\
import torch
from torch import nn, no_grad


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

{forward}


model = Net()
x = torch.randn(16, 4)
y = x.sum(1, keepdim=True)
losses = []
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
for step in range(6):
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
"""
PLAIN = "    def forward(self, x):\n"
BLOCK = (
    PLAIN
    + '        {head}\n            # what it is made of\n            h = self.a(x); s = """\n    a text"""\n\n            h = h * len(s)\n        return self.b(h)'
)


def script(forward: str) -> str:
    return SCRIPT.replace("{forward}", forward)


def at(text: str, mark: str, op: str) -> dict[str, Any]:
    line = 1 + next(i for i, t in enumerate(text.split("\n")) if mark in t)
    return {"file": "train.py", "line": line, "op": op}


@pytest.mark.parametrize(
    ("forward", "mark", "op", "expected"),
    [
        (PLAIN + "        return self.b(self.a(x).detach())", ".detach()", "detach", "self.b(self.a(x))"),
        (PLAIN + "        return self.b((2 * self.a(x)).detach().clone())", ".detach()", "detach", "self.b((2 * self.a(x)).clone())"),
        (PLAIN + "        h = (\n            self.a(x)  # a.b\n            .detach()\n        )\n        return self.b(h)", ".detach()", "detach", "# a.b"),
        (PLAIN + "        return self.b(torch.detach(self.a(x)))", "detach(", "detach", "self.b(self.a(x))"),
        (PLAIN + "        h = self.a(x)\n        return self.b(torch.detach(h + h) * 2)", "detach(", "detach", "self.b((h + h) * 2)"),
        (PLAIN + "        h = self.a(x)\n        h.detach_()\n        return self.b(h)", "detach_()", "detach", "        pass\n"),
        (PLAIN + "        return self.b(self.a(x).data)", ".data", "data", "self.b(self.a(x))"),
        (BLOCK.replace("{head}", "with torch.no_grad():"), "with torch", "no_grad", '        # what it is made of\n        h = self.a(x); s = """\n    a text"""\n\n        h = h * len(s)\n        return'),
        (BLOCK.replace("{head}", "with no_grad():  # off"), "no_grad():", "no_grad", "    def forward(self, x):\n        # what"),
        (BLOCK.replace("{head}", "with torch.set_grad_enabled(False):"), "set_grad", "no_grad", "    def forward(self, x):\n        # what"),
        (PLAIN + "        with torch.no_grad(): h = self.a(x)\n        return self.b(h)", "with torch", "no_grad", "        h = self.a(x)\n"),
        (PLAIN + "        with torch.no_grad(), torch.device('cpu'):\n            h = self.a(x)\n        return self.b(h)", "with torch", "no_grad", "with torch.set_grad_enabled(torch.is_grad_enabled()), torch.device"),
        (PLAIN + "        return self.b(self.encode(x))\n\n    @torch.no_grad()\n    def encode(self, x):\n        return self.a(x)", "@torch", "no_grad", "\n\n    def encode"),
    ],
)  # fmt: skip
def test_the_cut_goes_and_the_rest_stays(
    folder: Folder, forward: str, mark: str, op: str, expected: str
) -> None:
    text = script(forward)
    folder.write(text)
    site = at(text, mark, op)
    assert site in [{k: s[k] for k in site} for s in folder.survey()["cuts"]["sites"]], "the survey names it"
    patch = folder.check({"pass_gradients": {"sites": [site]}})
    assert expected in patch.source


@pytest.mark.parametrize(
    ("forward", "mark", "op", "why"),
    [
        (PLAIN + "        return self.b(self.a(x).data.data)", ".data", "data", "which .data"),
        (PLAIN + "        return self.b(self.a(x))", "return", "detach", "no detach"),
        (PLAIN + "        torch.set_grad_enabled(False)\n        return self.a(x)", "set_grad", "no_grad", "no block"),
        (PLAIN + "        off = torch.no_grad()\n        with off:\n            return self.a(x)", "with off", "no_grad", "no block"),
        (PLAIN + "        with torch.no_grad() as off:\n            return self.a(x)", "with torch", "no_grad", "a name"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_said(forward: str, mark: str, op: str, why: str) -> None:
    text = script(forward)
    with pytest.raises(NoPatch, match=why) as told:
        write_patch(text, "train.py", {"pass_gradients": {"sites": [at(text, mark, op)]}}, {})
    assert "out of these lines" in str(told.value)


def test_a_cut_of_another_file_is_named() -> None:
    site = {"file": "net.py", "line": 3, "op": "detach"}
    with pytest.raises(NoPatch, match="net.py, line 3"):
        write_patch(script(PLAIN + "        return x"), "train.py", {"pass_gradients": {"sites": [site]}}, {})
