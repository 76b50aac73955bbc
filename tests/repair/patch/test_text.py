# ruff: noqa: E501 - lines of scripts
"""The text of a patch: all that is not changed stays to the byte, in whatever style the script is written."""

from __future__ import annotations

import re

import pytest

from steadygrad.repair.patch import NoPatch, write_patch
from steadygrad.repair.patch.script import Script
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

CLIP = {"clip_norm": 0.5}
STYLES = {
    "plain": plain(),
    "line ends of Windows": plain().replace("\n", "\r\n"),
    "tabs": plain().replace("    ", "\t"),
    "two spaces": plain().replace("    ", "  "),
    "no line end at the end": plain().rstrip("\n"),
    "byte order mark": "\ufeff" + plain(),
    "semicolons": plain().replace(
        "loss.backward()\n    optimizer.step()", "loss.backward(); optimizer.step()"
    ),
    "semicolon behind": plain().replace("optimizer.step()\n    losses", "optimizer.step(); losses"),
    "one-line if": plain().replace("    optimizer.step()", "    if step % 2: optimizer.step()"),
    "one-line loop": plain().replace("    optimizer.step()", "    for i in range(2): pass; optimizer.step()"),
    "letters of two bytes": plain().replace(
        "    optimizer.step()", "    é = 'größer'; ü = 3; optimizer.step()"
    ),
    "form feed": plain().replace("losses = []", "losses = []\n\f"),
    "continued": plain().replace("optimizer.step()", "(optimizer\n        .step(\n        ))"),
    "torch by another name": plain().replace("torch.", "t.").replace("import torch\n", "import torch as t\n"),
    "docstring": '"""What this is."""\n' + plain(),
    "future": "from __future__ import annotations\n" + plain(),
    "remark behind": plain().replace("optimizer.step()", "optimizer.step()  # go; on"),
}


@pytest.mark.parametrize("plan", [CLIP, {"skip_nonfinite": 1, **CLIP}, {"warmup_steps": 3}], ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_every_style(folder: Folder, style: str, plan: dict[str, float]) -> None:
    text = STYLES[style]
    folder.write(text)
    patch = folder.check(plan)
    removed = [line for line in patch.diff.split("\n") if re.match(r"-(?!-- a/)", line)]
    assert len(removed) <= 1 or style == "continued"
    if "\r\n" in text:
        assert "\n" not in patch.source.replace("\r\n", "")


def test_an_empty_plan_changes_nothing() -> None:
    patch = write_patch(plain(), "train.py", {}, {})
    assert (patch.diff, patch.source) == ("", plain())


def test_a_patch_is_for_the_file_as_it_is_shown(folder: Folder) -> None:
    folder.write(plain())
    diff = folder.patch(CLIP).diff
    assert diff.startswith("--- a/train.py\n+++ b/train.py\n")


REFUSED = [
    ("optimizer.step()", "while optimizer.step(): pass", CLIP, "the condition of a loop"),
    ("optimizer.step()", "(lambda: optimizer.step())()", CLIP, "in the middle of an expression"),
    ("optimizer.step()", "if 0: pass\n    elif optimizer.step(): pass", CLIP, "the condition of an elif"),
    ("optimizer.step()", "go = optimizer.step\n    go()", CLIP, "cannot be read"),
    ("optimizer.step()", "a = optimizer.step()", {"skip_nonfinite": 1}, "uses what the step returns"),
    ("loss.backward()", "torch.autograd.backward([loss])", {"gradient_factor": 0.5}, "several losses"),
]


@pytest.mark.parametrize(("old", "new", "plan", "reason"), REFUSED, ids=[r[3] for r in REFUSED])
def test_what_cannot_be_written_is_refused_with_the_lines_to_add(
    folder: Folder, old: str, new: str, plan: dict[str, float], reason: str
) -> None:
    folder.write(plain().replace(old, new))
    with pytest.raises(NoPatch, match=reason) as refusal:
        folder.patch(plan)
    assert "by hand:\n  " in str(refusal.value)


def test_a_site_in_another_file_is_named(folder: Folder) -> None:
    (folder.path / "loop.py").write_text("def go(optimizer):\n    optimizer.step()\n")
    folder.write(
        plain().replace(
            "optimizer.step()",
            "exec(compile(__import__('pathlib').Path('loop.py').read_text(), 'loop.py', 'exec')); go(optimizer)",
        )
    )
    with pytest.raises(NoPatch, match=r"loop.py, line 2, not in train.py"):
        folder.patch(CLIP)


def test_an_unknown_key_and_a_source_that_is_no_python_are_refused() -> None:
    with pytest.raises(NoPatch, match="hold_targets"):
        write_patch(plain(), "train.py", {"hold_targets": 5}, {})
    with pytest.raises(NoPatch, match="cannot be read as Python"):
        write_patch("def", "train.py", CLIP, {})


def test_without_columns_the_one_call_of_the_line_is_found() -> None:
    script = Script("a = f(1)\nb = f(2) or g(\n  3)\n", "t.py")
    place = {"file": "t.py", "line": 2, "owner": "user", "span": None, "by": ""}
    assert script.text(script.call(place, lambda c: c.func.id == "g")) == "g(\n  3)"
    with pytest.raises(NoPatch, match="which part of line 2"):
        script.call(place, lambda c: True)
