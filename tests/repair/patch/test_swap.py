# ruff: noqa: E501 - lines of scripts
"""Another optimizer."""

from __future__ import annotations

from typing import Any

import pytest

from steadygrad.repair.patch import NoPatch
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

ADAM = {"optimizer": {"name": "AdamW", "lr": 0.01}}
CHECKED: list[tuple[str, dict[str, Any], str]] = [
    (plain(), ADAM, "optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)"),
    (plain("torch.optim.SGD(model.parameters(), 1e-3, 0.9)"), ADAM, "torch.optim.AdamW(model.parameters(), lr=0.01)"),
    (plain("torch.optim.Adam(model.parameters())"), {"optimizer": {"name": "SGD", "lr": 1e-3, "momentum": 0.9}}, "momentum=0.9)"),
    (plain("torch.optim.Adam((p for p in model.parameters()))"), ADAM, "AdamW((p for p in model.parameters()), lr=0.01)"),
    (plain("torch.optim.SGD(params=model.parameters(), lr=1)"), ADAM, "AdamW(params=model.parameters(), lr=0.01)"),
    (plain("torch.optim.SGD(\n    model.parameters(),\n    lr=1e-3,\n)"), ADAM, "    model.parameters(), lr=0.01\n)"),
    (plain("Adam(model.parameters(), lr=1)").replace("import nn", "import nn\nfrom torch.optim import Adam"), ADAM, "torch.optim.AdamW("),
    (plain("o.SGD(model.parameters(), lr=1)").replace("import nn", "import nn\nimport torch.optim as o"), ADAM, "torch.optim.AdamW("),
    (plain("optim.SGD(model.parameters(), lr=1)").replace("import nn", "import nn, optim"), ADAM, "= optim.AdamW("),
    (plain(), {**ADAM, "lr_factor": 0.1, "clip_norm": 0.5, "warmup_steps": 3}, "AdamW(model.parameters(), lr=0.001)"),
    (
        plain("torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)",
              more="sched = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12)", after="sched.step()"),
        ADAM,
        "OneCycleLR(optimizer, 0.01, total_steps=12)",
    ),
    (
        plain(more="sched = torch.optim.lr_scheduler.StepLR(optimizer, 4)", after="sched.step()"),
        {"optimizer": {"name": "RMSprop", "lr": 0.01}},
        "RMSprop(",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plan", "line"), CHECKED, ids=range(len(CHECKED)))
def test_the_patched_run_is_the_arm(folder: Folder, text: str, plan: dict[str, Any], line: str) -> None:
    folder.write(text)
    assert line in folder.check(plan).source


REFUSED = [
    (
        plain(more="s = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-3)"),
        "CyclicLR has rates of its own",
    ),
    (
        plain(more="s = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=1e-4)"),
        "has rates of its own",
    ),
    (plain('torch.optim.SGD([{"params": model.parameters(), "lr": 1.0}])'), "settings of their own"),
    (plain("torch.optim.SGD(lr=1e-3, params=model.parameters())"), "before its parameters"),
    (plain("torch.optim.SGD(model.parameters(),  # all\n    lr=1e-3)"), "remarks among the settings"),
    (plain(after="optimizer.param_groups[0]['lr'] *= 0.9"), "sets the rate of its optimizer itself"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=[r[1] for r in REFUSED])
def test_what_would_not_be_the_arm_is_refused(folder: Folder, text: str, reason: str) -> None:
    folder.write(text)
    with pytest.raises(NoPatch, match=reason):
        folder.patch(ADAM)
