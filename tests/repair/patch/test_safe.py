# ruff: noqa: E501 - lines of scripts
"""Operations that fail at the ends of their domain, rewritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steadygrad.repair.effects.safe import safely
from steadygrad.repair.patch import NoPatch, safe_helpers, write_patch
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

MARK = "    loss = ((model(x) - y) ** 2).mean()\n"


def with_line(*lines: str) -> str:
    """A training whose loss is made by these lines, the last of which is the 13th of the script."""
    body = "".join(f"    {line}\n" for line in lines)
    text = plain("torch.optim.SGD(model.parameters(), lr=1e-2)").replace(MARK, body)
    return "\n" * (13 - text[: text.index(body) + len(body)].count("\n")) + text


HUGE = "z = 1e25 * model(x) * (x[:, :1] > 0)"
ZERO = "z = model(x) * (x[:, :1] > 0)"
P = "p = torch.sigmoid(500 * model(x))"
S = "p = torch.softmax(torch.cat([300 * model(x), -model(x)], 1), dim=1)"
LINES: list[tuple[list[str], str]] = [
    ([ZERO, "loss = torch.sqrt(z ** 2).mean()"], "safe_sqrt(z ** 2)"),
    ([ZERO, "loss = (z ** 2).sqrt().mean()"], "safe_sqrt((z ** 2)).mean()"),
    ([ZERO, "loss = ((z ** 2) ** 0.5).mean()"], "safe_pow((z ** 2) , 0.5)"),
    ([ZERO, "loss = (y / z).clamp(-5, 5).mean()"], "(safe_div(y , z))"),
    ([HUGE, "loss = z.norm(dim=1).mean() * 1e-25"], "safe_norm(lambda x: x.norm(dim=1), z, dim=1)"),
    ([HUGE, "loss = torch.linalg.vector_norm(z, dim=1).mean() * 1e-25"], "safe_norm(lambda x: torch.linalg.vector_norm(x, dim=1), z, dim=1)"),
    ([ZERO, "loss = torch.log(z ** 2).mean() / 50"], "safe_log(z ** 2)"),
    (["z = model(x)", "loss = -z.log().mean()"], "-safe_log(z).mean()"),
    (["z = 30 * model(x)", "loss = torch.exp(z).mean().clamp(max=1e30) * 1e-9"], "safe_exp(z)"),
    ([P, "loss = -(torch.log(p) + torch.log(1 - p)).mean()"], "safe_log(1 - p"),
    (["z = 500 * model(x)", "p = torch.sigmoid(z)", "loss = -(torch.log(p) + torch.log(1 - p)).mean()"], "logsigmoid(-(z))"),
    ([S, "loss = -p[:, 1].log().mean()"], "safe_log(p[:, 1])"),
    (
        ["z = torch.cat([300 * model(x), -model(x)], 1)", "p = torch.softmax(z, dim=1)", "loss = -torch.log(p[:, 1]).mean()"],
        "lambda: torch.log_softmax(z, dim=1)[:, 1]",
    ),
    (["z = model(x).expand(-1, 3).masked_fill(x[:, :1] > 0, float('-inf'))", "loss = z.softmax(1).square().mean()"], "safe_softmax(z, 1)"),
]  # fmt: skip
KNOWN_TO_THE_ARM_ALONE = {9, 11}  # where the probability came from: the patch cannot name it


@pytest.mark.parametrize("i", range(len(LINES)))
def test_the_patched_run_is_the_arm(folder: Folder, i: int) -> None:
    lines, expected = LINES[i]
    folder.write(with_line(*lines))
    plan = {"safe_ops": {"sites": [{"file": "train.py", "line": 13, "op": "any"}]}}
    patch = (
        folder.patch(plan)
        if i in KNOWN_TO_THE_ARM_ALONE
        else folder.check(plan, changes="norm" not in expected)
    )
    assert expected in patch.source


@pytest.mark.parametrize(
    ("line", "function", "expected"),
    [
        ("loss = -(y * torch.log(z) + (1 - y) * torch.log(1 - z)).mean()", "logsigmoid", "logsigmoid(-(z))"),
        ("loss = -torch.log(z + 1e-8).mean()", "logsigmoid", "-torch.nn.functional.logsigmoid(z).mean()"),
        (
            "loss = -(2 * z).log().mean()",
            "log_softmax",
            "-torch.log_softmax(2 * z, min(1, (2 * z).dim() - 1)).mean()",
        ),
    ],
)
def test_a_log_that_wants_a_probability(folder: Folder, line: str, function: str, expected: str) -> None:
    folder.write(with_line("z = model(x)", line))
    sites = [{"file": "train.py", "line": 13, "op": "log", "as": function}]
    assert expected in folder.check({"safe_ops": {"sites": sites}}).source


HARD = [-torch.inf, -1e30, -1.0, -1e-30, -0.0, 0.0, 1e-42, 1e-30, 1e-3, 1.0, 40.0, 1e30, torch.inf, torch.nan]
FORMS: dict[str, tuple[Any, ...]] = {
    "log": (), "sqrt": (), "exp": (), "pow": (0.5, -1.0, -2.0, -0.5, 1.5, 2.0), "div": (0.0, 3.0)
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FORMS)
def test_the_helpers_are_the_forms(name: str, dtype: torch.dtype) -> None:
    scope: dict[str, Any] = {}
    exec("import math\nimport torch\n" + "".join(safe_helpers.HELPERS[name][1]), scope)
    helper = scope[safe_helpers.HELPERS[name][0]]
    for rest in [(r,) for r in FORMS[name]] or [()]:
        for values in (HARD, HARD[5:]):
            results = []
            for function in (helper, lambda x, *r: safely(name, getattr(torch, name), (x, *r), {})):
                x = torch.tensor(values, dtype=dtype, requires_grad=True)
                y = function(x, *rest)
                results.append((y.detach(), torch.autograd.grad(y.sum(), x)[0]))
            for ours, theirs in zip(*results, strict=True):
                assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0)), (rest, ours, theirs)


def test_what_has_no_line_of_its_own_is_refused() -> None:
    with pytest.raises(NoPatch, match="name the lines"):
        write_patch(plain(), "train.py", {"safe_ops": {"everywhere": True}}, {})
    with pytest.raises(NoPatch, match=r"in other.py, line 3, not in train.py"):
        write_patch(plain(), "train.py", {"safe_ops": {"sites": [{"file": "other.py", "line": 3}]}}, {})
    with pytest.raises(NoPatch, match="no operation that could be given a safe form"):
        write_patch(plain(), "train.py", {"safe_ops": {"sites": [{"file": "train.py", "line": 5}]}}, {})
