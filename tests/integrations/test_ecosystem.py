"""Untouched scripts of every kind under ``steadygrad run``: every step and every tensor is seen.

Integration tests: a framework that is not installed skips its test; `make test-all` installs them.
"""

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
STEADYGRAD = [sys.executable, "-m", "steadygrad"]


def run(tmp_path, *command: str) -> tuple[dict, dict, str]:
    """Run a script; give back the truth it printed, the JSON object of the run, and its output."""
    options = ["--quiet", "--json", str(tmp_path / "out.json"), "--runs", str(tmp_path / "runs")]
    out = subprocess.run(
        [*STEADYGRAD, "run", *options, *command],
        capture_output=True, text=True, cwd=SCRIPTS, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stdout + out.stderr
    truth = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", re.search(r"TRUTH.*", out.stdout)[0])}
    return truth, json.loads((tmp_path / "out.json").read_text()), out.stdout


def check(truth: dict, result: dict, steps_of_optimizers: list[int]) -> sg.Run:
    seen = sg.Run(result["run_dir"])
    assert len(seen.params) == truth["tensors"]
    assert all(p.name and not p.name.startswith("param_groups") for p in seen.params), [
        p.name for p in seen.params
    ]
    taken = []
    for index in range(len(steps_of_optimizers)):
        steps, norms = seen.scalar("grad_norm", optimizer=index)
        taken.append(len(steps))
        assert all(n == n and n < float("inf") for n in norms)
        for p in seen.params:
            if p.optimizer == index:
                assert len(seen.series("grad_norm", p.name)[0]) == len(steps)
    assert taken == steps_of_optimizers
    assert sum(taken) == truth["steps"]
    assert result["actions"] == []
    return seen


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def test_plain(tmp_path):
    check(*run(tmp_path, "plain.py")[:2], [200])


def test_module(tmp_path):
    check(*run(tmp_path, "-m", "plain")[:2], [200])


@needs("lightning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_sees_raw_norms(precision, tmp_path):
    truth, result, _ = run(tmp_path, "lightning_fit.py", precision)
    seen = check(truth, result, [20])
    raw, clipped = (seen.scalar(k)[1] for k in ("grad_norm", "clipped_grad_norm"))
    assert max(clipped) <= 0.1001 and max(raw) > 0.1001


@needs("transformers")
def test_hugging_face_trainer_sees_raw_norms(tmp_path):
    truth, result, _ = run(tmp_path, "hf_trainer.py")
    seen = check(truth, result, [20])
    raw, clipped = (seen.scalar(k)[1] for k in ("grad_norm", "clipped_grad_norm"))
    assert max(clipped) <= 0.1001 and max(raw) > 0.1001


@needs("accelerate")
def test_accelerate_with_accumulation(tmp_path):
    check(*run(tmp_path, "accelerate_accumulation.py")[:2], [20])


def test_gan_lbfgs_scaler_and_workers(tmp_path):
    truth, result, _ = run(tmp_path, "gan_lbfgs_amp.py")
    taken = truth["steps"] - 23
    seen = check(truth, result, [10, 10, 3, taken])
    assert truth["amp_skips"] > 0
    assert seen.meta["amp_skips"] == truth["amp_skips"]


@pytest.mark.slow
def test_torchrun_with_fsdp2(tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29631",
    ]
    truth, result, out = run(tmp_path, "--", *torchrun, "fsdp2.py")
    seen = check(truth, result, [5])
    assert seen.ranks == [0, 1]
    true = {int(s): float(n) for s, n in re.findall(r"NORM rank=0 step=(\d+) ([\d.]+)", out)}
    assert dict(zip(*seen.scalar("grad_norm"), strict=True)) == pytest.approx(true, rel=1e-4)
