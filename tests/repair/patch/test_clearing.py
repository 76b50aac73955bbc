"""The line that clears the gradients is moved behind the step, or it is said why not."""

from __future__ import annotations

import pytest

from steadygrad.repair.patch import NoPatch
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

PLAN = {"clear_after_step": 1}
RIGHT = plain().replace("    optimizer.zero_grad()\n", "")
STEP = "    optimizer.step()\n"
EARLY = RIGHT.replace(STEP, "    optimizer.zero_grad()\n" + STEP)
MOVED = STEP + "    optimizer.zero_grad()\n"
GATHERED = RIGHT.replace(STEP, "    optimizer.zero_grad()\n    if step % 3 == 2:\n    " + STEP)
LINE = "    loss.backward(); {}optimizer.step(){}\n"
ONE_LINE = RIGHT.replace("    loss.backward()\n" + STEP, LINE.format("optimizer.zero_grad(); ", ""))
IN_WITH = RIGHT.replace(
    "    loss.backward()\n",
    "    with torch.enable_grad():\n        loss.backward()\n        optimizer.zero_grad()\n",
)
ALONE = RIGHT.replace(STEP, "    with torch.no_grad():\n        optimizer.zero_grad()\n" + STEP)
COMMENTED = EARLY.replace("zero_grad()", "zero_grad(\n        set_to_none=False,\n    )  # all of them")
TWO = RIGHT.replace(
    STEP, "    model.zero_grad()\n    two.step()\n" + STEP
).replace("for step", "two = torch.optim.SGD(model[0].parameters(), lr=0.1)\nfor step").replace(
    "SGD(model.parameters()", "SGD(model[2].parameters()"
)  # fmt: skip
CLIPPED = EARLY.replace(STEP, "    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)\n" + STEP)
SCALED = (
    EARLY.replace("zero_grad()", "zero_grad(set_to_none=False)")
    .replace("for step", "scaler = torch.amp.GradScaler('cpu')\nfor step")
    .replace("loss.backward()", "scaler.scale(loss).backward()")
    .replace("optimizer.step()", "scaler.step(optimizer)\n    scaler.update()")
)

CHECKED = {
    "plain": (EARLY, MOVED),
    "by the model": (EARLY.replace("optimizer.z", "model.z"), STEP + "    model.zero_grad()\n"),
    "gathered": (GATHERED, "()\n    if step % 3 == 2:\n    " + STEP + "        optimizer.zero_grad()\n"),
    "in one line": (ONE_LINE, LINE.format("", "; optimizer.zero_grad()")),
    "in a block": (IN_WITH, "        loss.backward()\n" + MOVED),
    "alone in a block": (ALONE, "    with torch.no_grad():\n        pass\n" + MOVED),
    "over lines": (COMMENTED, STEP + "    optimizer.zero_grad(set_to_none=False)\n"),
    "for two": (TWO, "    two.step()\n" + STEP + "    model.zero_grad()\n"),
    "twice": (EARLY.replace(STEP, "    model.zero_grad()\n" + STEP), MOVED + "    model.zero_grad()\n"),
    "clipped": (CLIPPED, "    loss.backward()\n    torch.nn"),
    "scaled": (SCALED, "    scaler.step(optimizer)\n    optimizer.zero_grad(set_to_none=False)\n"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), CHECKED.values(), ids=CHECKED)
def test_the_patched_run_is_the_arm(folder: Folder, text: str, lines: str) -> None:
    folder.write(text)
    source = folder.check(PLAN).source
    assert lines in source
    assert source.count("zero_grad(") == text.count("zero_grad(")


REFUSED = {
    "another function": (
        EARLY.replace("    optimizer.zero_grad()", "    clear()").replace(
            "for step", "def clear():\n    print()\n    optimizer.zero_grad()\nfor step"
        ),
        "in another function",
    ),
    "a loop of its own": (
        EARLY.replace("    optimizer.zero_grad()", "    for o in [optimizer]:\n        o.zero_grad()"),
        "in a branch or a loop without the step",
    ),
    "more than that": (EARLY.replace("optimizer.zero_grad()", "a = optimizer.zero_grad()"), "does more than"),
    "a step that is returned": (
        RIGHT.replace("for step in range(12):", "def one():").replace("losses.append(loss.item())", "").replace(
            STEP, "    optimizer.zero_grad()\n    return optimizer.step()\n"
        ) + "\none()\n",
        "nothing can be put behind",
    ),
    "branches": (
        RIGHT.replace(
            STEP, "    optimizer.zero_grad()\n    if step % 2:\n    " + STEP + "    else:\n    " + STEP
        ),
        "step in different branches",
    ),
    "nothing wrong": (plain(), "not known where the gradients are cleared"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_where_it_cannot_be_moved_it_is_said_why(folder: Folder, text: str, reason: str) -> None:
    folder.write(text)
    with pytest.raises(NoPatch, match=reason) as told:
        folder.patch(PLAN)
    assert "behind optimizer.step(), not before it:\n      optimizer.zero_grad()" in str(told.value)
