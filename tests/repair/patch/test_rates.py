# ruff: noqa: E501 - lines of scripts
"""Numbers of the optimizer, changed wherever the script has them from."""

from __future__ import annotations

import sys

import pytest

from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

OPTIMIZER = "torch.optim.SGD(model.parameters(), lr=1e-3)"
SOURCES = {  # the script, and a line of the patched one
    "literal": (plain(), "optimizer = torch.optim.SGD(model.parameters(), lr=0.0001)"),
    "positional": (plain("torch.optim.SGD(model.parameters(), 1e-3)"), "torch.optim.SGD(model.parameters(), 0.0001)"),
    "default": (plain("torch.optim.Adam(model.parameters())"), "torch.optim.Adam(model.parameters(), lr=0.0001)"),
    "trailing comma": (
        plain("torch.optim.Adam(\n    model.parameters(),  # all, of it\n)"),
        " lr=0.0001)",
    ),
    "name": (plain("torch.optim.SGD(model.parameters(), lr=rate)").replace("x = ", "rate = 1e-3\nx = "), "rate = 0.0001"),
    "name in a tuple": (
        plain("torch.optim.SGD(model.parameters(), lr=rate)").replace("x = ", "rate, other = 1e-3, 2\nx = "),
        "rate, other = 0.0001, 2",
    ),
    "name that is read elsewhere": (
        plain("torch.optim.SGD(model.parameters(), lr=rate)").replace("x = ", "rate = 1e-3\nprint(rate)\nx = "),
        "lr=rate * 0.1)",
    ),
    "expression": (plain("torch.optim.SGD(model.parameters(), lr=1e-4 + 9e-4)"), "lr=(1e-4 + 9e-4) * 0.1)"),
    "dict": (
        plain("torch.optim.SGD(model.parameters(), lr=cfg['lr'])").replace("x = ", "cfg = {'lr': 1e-3, 'é': 2}\nx = "),
        "cfg = {'lr': 0.0001, 'é': 2}",
    ),
    "dict that is read elsewhere": (
        plain("torch.optim.SGD(model.parameters(), lr=cfg['lr'])").replace("x = ", "cfg = {'lr': 1e-3}\nd = cfg['lr']\nx = "),
        "lr=cfg['lr'] * 0.1)",
    ),
    "dict call": (
        plain("torch.optim.SGD(model.parameters(), lr=cfg['lr'])").replace("x = ", "cfg = dict(lr=1e-3)\nx = "),
        "cfg = dict(lr=0.0001)",
    ),
    "class of settings": (
        plain("torch.optim.SGD(model.parameters(), lr=C.lr)").replace("x = ", "class C:\n    lr: float = 1e-3\nx = "),
        "    lr: float = 0.0001",
    ),
    "groups": (
        plain('torch.optim.SGD([{"params": model[0].parameters(), "lr": 2e-3}, {"params": model[2].parameters()}], lr=1e-3)'),
        '[{"params": model[0].parameters(), "lr": 0.0002}, {"params": model[2].parameters()}], lr=0.0001)',
    ),
    "spread arguments": (
        plain("torch.optim.SGD(model.parameters(), **given)").replace("x = ", "given = {'lr': 1e-3}\nx = "),
        'lambda group, step: group.update(lr=group["lr"] * 0.1))',
    ),
    "set by hand": (
        plain().replace("    loss = ", "    optimizer.param_groups[0]['lr'] = 1e-3 / (1 + step)\n    loss = "),
        'optimizer = changed_at_steps(torch.optim.SGD(model.parameters(), lr=1e-3), lambda group, step:',
    ),
    "exponential": (
        plain(more="sched = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)", after="sched.step()"),
        "lr=0.0001",
    ),
    "cosine to a floor": (
        plain(
            more="sched = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=1e-4)", after="sched.step()"
        ),
        "changed_at_steps(",
    ),
    "one cycle": (
        plain(
            more="sched = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12)",
            after="sched.step()",
        ),
        "max_lr=0.001,",
    ),
    "one cycle, several": (
        plain(
            more="sched = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[1e-2], total_steps=12)",
            after="sched.step()",
        ),
        "changed_at_steps(",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_the_rate_is_changed_where_it_comes_from(folder: Folder, name: str) -> None:
    text, line = SOURCES[name]
    folder.write(text)
    assert line in folder.check({"lr_factor": 0.1}).source


FUNCTION = """\
import torch


def train({parameter}):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(6):
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


losses, model, x = [], torch.nn.Linear(3, 2), torch.randn(8, 3)
train({argument})
"""


@pytest.mark.parametrize(
    ("parameter", "argument", "line"),
    [
        ("lr=0.1", "", "def train(lr=0.01):"),
        ("lr=0.1", "0.2", "lr=lr * 0.1)"),
        ("lr=0.1", "lr=0.2", "lr=lr * 0.1)"),
        ("lr", "0.2", "lr=lr * 0.1)"),
        ("*, lr: float = 0.1", "", "def train(*, lr: float = 0.01):"),
    ],
)
def test_a_parameter_is_changed_at_its_default_if_nobody_gives_it(
    folder: Folder, parameter: str, argument: str, line: str
) -> None:
    folder.write(FUNCTION.format(parameter=parameter, argument=argument))
    assert line in folder.check({"lr_factor": 0.1}).source


ARGPARSE = plain("torch.optim.SGD(model.parameters(), lr=args.lr)").replace(
    "x = ",
    "import argparse\nparser = argparse.ArgumentParser()\n"
    "parser.add_argument('-l', '--lr', type=float, default=1e-3)\nargs = parser.parse_args()\nx = ",
)


def test_an_option_is_changed_at_its_default_and_the_option_told(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    folder.write(ARGPARSE)
    patch = folder.check({"lr_factor": 0.1})
    assert "'--lr', type=float, default=0.0001)" in patch.source
    assert patch.notes == ("the same without the patch: run the script with --lr 0.0001",)


def test_an_option_that_was_given_is_changed_where_it_is_used(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr=2e-3"])
    folder.write(ARGPARSE + "# given\n")
    patch = folder.check({"lr_factor": 0.1})
    assert "lr=args.lr * 0.1)" in patch.source and "default=1e-3" in patch.source


ADAM = plain("torch.optim.AdamW(model.parameters(), lr=1e-2{})")
NUMBERS = [
    (plain("torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)"), {"momentum": 0.5}, "momentum=0.5)"),
    (ADAM.format(""), {"momentum": 0.5}, "betas=(0.5, 0.999))"),
    (ADAM.format(", betas=(0.9, 0.95)"), {"momentum": 0.5, "beta2": 0.9}, "betas=(0.5, 0.9))"),
    (ADAM.format(""), {"momentum": 0.5, "beta2": 0.9}, "betas=(0.5, 0.9))"),
    (ADAM.format(", betas=betas").replace("x = ", "betas = (0.9, 0.99)\nx = "), {"beta2": 0.9}, "changed_at_steps("),
    (ADAM.format(""), {"beta2": 0.9}, "betas=(0.9, 0.9))"),
    (ADAM.format(""), {"adam_eps": 1e-2}, "eps=0.01)"),
    (ADAM.format(", eps=1e-6"), {"adam_eps": 1e-2}, "eps=0.01)"),
    (ADAM.format(""), {"weight_decay": 0.0}, "weight_decay=0.0)"),
    (ADAM.format(", weight_decay=a.b").replace("x = ", "class a: b = 0.5\nx = "), {"weight_decay": 0.1}, "=min(a.b, 0.1)"),
    (plain(), {"warmup_steps": 5}, "min(1.0, step / 5)"),
    (plain(), {"lr_factor": 10.0, "warmup_steps": 5.0}, "lr=0.01), lambda group, step:"),
    (plain(), {"lr_decay": 12}, "(step - 1) / 12"),
    (
        plain(more="sched = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t)", after="sched.step()").replace(
            "lambda t: t", "lambda t: 1 + t"
        ),
        {"lr_cap": 2.0},
        "2.0 * first",
    ),
    (
        plain(
            "torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)",
            more="sched = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12)",
            after="sched.step()",
        ),
        {"momentum": 0.87},
        'group.update(momentum=min(group["momentum"], 0.87))',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plan", "line"), NUMBERS, ids=[str(plan) for _, plan, _ in NUMBERS])
def test_other_numbers(folder: Folder, text: str, plan: dict[str, float], line: str) -> None:
    folder.write(text)
    assert line in folder.check(plan).source


def test_schedulers_and_prints_go_on_from_the_users_rate_when_it_is_changed_at_steps(folder: Folder) -> None:
    folder.write(plain(after="print(optimizer.param_groups[0]['lr'])"))
    patch = folder.check({"warmup_steps": 4})
    assert patch.source.count("changed_at_steps(") == 2  # the helper, and one call
