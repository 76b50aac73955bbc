"""Runs small scripts in this process: untouched and surveyed, under a plan, and patched."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steadygrad.integrations.trial import Trial
from steadygrad.repair.patch import Patch, write_patch

twins: dict[
    str, tuple[Run, dict[str, Any]]
] = {}  # what scripts came to untouched, and their surveys, by their text


def fail(error: Exception) -> None:
    raise error


@dataclass
class Run:
    """What a script has come to: every tensor of its model, and its list ``losses``."""

    state: dict[str, Tensor]
    losses: list[float]


def run(path: Path, plan: Mapping[str, Any] | None = None, *, survey: dict[str, Any] | None = None) -> Run:
    """Run a script as ``__main__``, under a plan or, if that is None, with nobody looking on."""
    gc.collect()
    gc.freeze()  # what was there before the script is not searched for its models
    torch.manual_seed(0)
    trial = Trial(plan or {}, survey=survey is not None, failed=fail)
    if plan is not None:
        trial.install()
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), names)
    finally:
        trial.close()
    if survey is not None:
        report = trial.report()
        assert report is not None
        survey.update(report.survey)
    models = [v for k, v in sorted(names.items()) if isinstance(v, torch.nn.Module)]
    state = {f"{i}.{k}": t.clone() for i, m in enumerate(models) for k, t in m.state_dict().items()}
    out = Run(state, [float(x) for x in names.get("losses", ())])
    return out


class Folder:
    """A working directory with one script, ``train.py``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script = path / "train.py"

    def write(self, text: str) -> None:
        self.script.write_bytes(text.encode())

    def survey(self) -> dict[str, Any]:
        return self._twin()[1]

    def _twin(self) -> tuple[Run, dict[str, Any]]:
        text = self.script.read_bytes().decode()
        if text not in twins:
            found: dict[str, Any] = {}
            twins[text] = run(self.script, {}, survey=found), found
        return twins[text]

    def patch(self, plan: Mapping[str, Any]) -> Patch:
        """Survey the script and write the plan into it; the file stays as it is."""
        return write_patch(self.script.read_bytes().decode(), "train.py", plan, self.survey())

    def apply(self, patch: Patch) -> Path:
        """The patched script, made by the patch program from the diff."""
        (self.path / "fix.patch").write_bytes(patch.diff.encode())
        made = self.path / "patched"
        made.mkdir()
        (made / "train.py").write_bytes(self.script.read_bytes())
        subprocess.run(
            ["patch", "-p1", "--binary", "-s", "-i", "../fix.patch"],
            cwd=made,
            check=True,
            capture_output=True,
        )
        assert (made / "train.py").read_bytes() == patch.source.encode()
        return made / "train.py"

    def check(self, plan: Mapping[str, Any], *, changes: bool = True) -> Patch:
        """The patched script, run alone, has every weight and loss of the untouched one under the plan."""
        patch = self.patch(plan)
        untouched, arm, patched = self._twin()[0], run(self.script, plan), run(self.apply(patch))
        assert arm.state.keys() >= untouched.state.keys()
        changed = any(not torch.equal(arm.state[k], v) for k, v in untouched.state.items())
        assert not changes or changed or arm.losses != untouched.losses, "the plan changes nothing"
        assert patched.losses == pytest.approx(arm.losses, rel=0, abs=0, nan_ok=True)
        for key in untouched.state:
            assert torch.equal(patched.state[key].nan_to_num(7.0), arm.state[key].nan_to_num(7.0)), key
        return patch
