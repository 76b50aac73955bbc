"""A full disk: the run goes on, bit-identical, with one warning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")  # not on Windows

CHILD = """
import json, resource, signal, sys, warnings
import steadygrad as sg
from tests.integrations.trainings import cnn_batchnorm, differences, unwatched

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
plain = cnn_batchnorm(0, 150, unwatched)
watchers = []

def watched(models, optimizers):
    watchers.append(sg.watch(models, *optimizers, runs=sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    return watchers[-1]

same = differences(plain, cnn_batchnorm(0, 150, watched))
summary = watchers[0].close()
print(json.dumps({"differences": same, "notes": summary.notes, "steps": summary.steps}))
"""


@pytest.mark.parametrize("room", [pytest.param(0, marks=pytest.mark.slow), 40_000])
def test_full_disk_leaves_the_run_alone(room, tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(room)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert told["differences"] == [] and told["steps"] == 150
    assert len(told["notes"]) == 1, told["notes"]
