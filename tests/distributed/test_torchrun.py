"""``steadygrad run -- torchrun``: a script that knows nothing of us, two ranks, one run directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import steadygrad as sg

SCRIPT = Path(__file__).parents[1] / "integrations" / "scripts" / "ddp_nan.py"


@pytest.mark.slow
def test_decision_of_both_ranks_is_on_record_once(tmp_path):
    ours = [
        sys.executable,
        "-m",
        "steadygrad",
        "run",
        "--quiet",
        "--json",
        "out.json",
        "--runs",
        "runs",
        "--",
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29633",
    ]
    done = subprocess.run(
        [*ours, *torchrun, str(SCRIPT)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FINITE True") == 2
    result = json.loads((tmp_path / "out.json").read_text())
    ((action),) = result["actions"]
    assert (action["step"], action["action"]) == (7, "skip")
    assert action["reason"].endswith("(the loss of rank 1 is nan, sample 2 of its batch)")
    assert result["notes"] == [] and result["skipped"] == 1
    run_dir = tmp_path / result["run_dir"]
    run = sg.Run(run_dir)
    assert run.ranks == [0, 1]
    assert [len(run.scalar("applied", rank=rank)[0]) for rank in run.ranks] == [20, 20]
    assert sorted(p.name for p in (run_dir / "snapshots").iterdir()) == ["rank-0", "rank-1"]
