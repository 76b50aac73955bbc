"""A ResNet and a GPT-2, both small, train to their end in every framework under the guard, and leave a whole run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import steadygrad as sg

SCRIPTS = Path(__file__).parent / "scripts"
PACKAGES = {"lightning": "lightning", "hf": "transformers", "accelerate": "accelerate"}
FRAMEWORKS = ["plain", "compile", "amp", "lightning", "hf", "accelerate", "ddp", "fsdp2"]
RANKS = 2


def arguments(kind, framework, port):
    words = ["end_to_end.py", kind, framework]
    if framework not in ("ddp", "fsdp2"):
        return words
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--master-port", str(port)]
    return ["--", sys.executable, *launcher, *words]


@pytest.mark.parametrize(
    "kind, framework",
    [
        pytest.param(
            kind, framework, marks=[] if (kind, framework) == ("gpt2", "plain") else pytest.mark.slow
        )
        for kind in ("resnet", "gpt2")
        for framework in FRAMEWORKS
    ],
)
def test_it_trains_to_its_end_and_leaves_a_whole_run(kind, framework, tmp_path):
    package = PACKAGES.get(framework)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    port = 29700 + FRAMEWORKS.index(framework) + 50 * (kind == "gpt2")
    options = ["--quiet", "--json", str(tmp_path / "out.json"), "--runs", str(tmp_path / "runs")]
    out = subprocess.run(
        [sys.executable, "-m", "steadygrad", "run", *options, *arguments(kind, framework, port)],
        capture_output=True, text=True, cwd=SCRIPTS, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stdout + out.stderr
    first, last = map(float, re.search(r"LOSS first=([\d.]+) last=([\d.]+)", out.stdout).groups())
    assert last < 0.7 * first
    steps, tensors = map(int, re.search(r"TRUTH steps=(\d+) tensors=(\d+)", out.stdout).groups())
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["steps"] == steps and result["actions"] == [] and result["findings"] == []
    run = sg.Run(result["run_dir"])
    assert len(run.params) == tensors
    assert not any(p.name.startswith("param_groups") for p in run.params)
    for rank in run.ranks:
        seen, norms = run.scalar("grad_norm", rank=rank)
        assert list(seen) == list(range(steps)) and (norms > 0).all()
    assert run.ranks == (list(range(RANKS)) if framework in ("ddp", "fsdp2") else [0])
    report = [sys.executable, "-m", "steadygrad", "report", result["run_dir"]]
    assert subprocess.run(report, capture_output=True, timeout=120).returncode == 0
    assert (Path(result["run_dir"]) / "report.html").stat().st_size > 10_000
