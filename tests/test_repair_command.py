"""``steadygrad repair``, started as a user does: exit codes, files, JSON, interrupts. Each run imports torch."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from steadygrad.cli import main
from tests.commands import PYTHON, STEADYGRAD, call, finish, start

KEYS = {
    "schema", "cured", "healthy", "causes", "prescription", "remedies", "patch", "twin", "fixed", "arms",
    "steps_total", "seconds",
}  # fmt: skip

TRAINS = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
x = torch.randn(80, 32, 8)
y = x.sum(2, keepdim=True)
for step in range(80):
    optimizer.zero_grad()
    loss = (model(x[step]) - y[step]).square().mean()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), "model.pt")
"""
BAD_BATCH = TRAINS.replace("for step", 'x[40, 3] = float("nan")\nfor step')
HOPELESS = TRAINS.replace("y = x.sum(2, keepdim=True)", "y = torch.full((80, 32, 1), torch.nan)")
# The untouched run has lost its weights by then; whatever keeps them waits for ever.
HANGS = BAD_BATCH.replace("import torch\n", "import time, torch\n", 1).replace(
    "    optimizer.step()\n",
    "    optimizer.step()\n    if step == 41 and model[0].weight.isfinite().all():\n        time.sleep(900)\n",
)


@pytest.fixture
def cwd(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def repair(cwd, *words, **env):
    return call([*STEADYGRAD, "repair", *words], cwd, env=env)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_healthy_script_is_left_alone_and_nothing_is_written(cwd, tmp_path):
    (cwd / "train.py").write_text(TRAINS)
    done = repair(cwd, "--json", tmp_path / "out.json", "train.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The untouched run trains (loss ") and done.stdout.endswith(
        "Nothing to repair.\n"
    )
    assert done.stdout.count("\n") == 1
    assert files(cwd) == ["train.py"]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found.keys() >= KEYS
    assert (found["healthy"], found["cured"], found["prescription"], found["patch"]) == (
        True,
        False,
        None,
        None,
    )
    assert found["twin"]["survived"] is True and found["arms"] == [] and found["remedies"] == []


def test_a_script_that_breaks_by_itself_keeps_its_words_and_its_exit_code(cwd):
    (cwd / "train.py").write_text(TRAINS.replace("range(80)", "range(5)") + "raise LookupError('its own')\n")
    done = repair(cwd, "--json", "-", "train.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "LookupError: its own" in done.stderr and 'train.py", line ' in done.stderr
    assert "failed after 5 steps, by an error of its own" in done.stderr
    assert files(cwd) == ["train.py"]


def test_a_script_that_never_steps(cwd):
    (cwd / "defines.py").write_text("def train(): ...\n")
    done = repair(cwd, "defines.py")
    assert done.returncode == 2 and "defines.py ended, and no optimizer step was seen." in done.stderr
    (cwd / "defines.py").write_text("import sys\nsys.exit(5)\n")
    done = repair(cwd, "defines.py")
    assert done.returncode == 5 and "ended with exit code 5" in done.stderr


def test_bad_input_is_told_before_anything_runs(cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    for words, said in (
        (["gone.py"], "no such script: gone.py"),
        (["--jobs", "0", "train.py"], "--jobs"),
        (["--engine", "cloud", "train.py"], "--engine"),
        (["--from", "nothing", "train.py"], "'nothing' is no run"),
        (["--json", ".", "train.py"], "is a directory"),
        ([], "SCRIPT"),
    ):
        (cwd / "train.py").write_text("raise SystemExit('it must not run')\n")
        assert main(["repair", *words]) == 2, words
        assert said in capsys.readouterr().err, words


@pytest.mark.slow  # five runs of torch
def test_a_cure_is_proven_saved_and_printed_and_its_patch_applies(cwd, tmp_path):
    (cwd / "train.py").write_text(BAD_BATCH)
    done = repair(cwd, "--seeds", "1", "--json", tmp_path / "out.json", "train.py")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    stages = [out.index(f"{k}/4  ") for k in (1, 2, 3, 4)]
    assert stages == sorted(stages) and "failed: " in out and "<-" in out
    assert (
        "--- a/train.py" in out
        and "patch proven: its losses equal the remedy's bit for bit over 79 steps" in out
    )
    assert "next: git apply runs/train-1/fix.patch" in out
    assert "steadygrad run --with runs/train-1/prescription.json train.py" in out
    saved = [
        "runs/train-1/fix.patch",
        "runs/train-1/prescription.html",
        "runs/train-1/prescription.json",
        "train.py",
    ]
    assert files(cwd) == saved and (cwd / "train.py").read_text() == BAD_BATCH

    found = json.loads((tmp_path / "out.json").read_text())
    assert found.keys() >= KEYS and (found["cured"], found["healthy"]) == (True, False)
    assert (
        found["prescription"] == "runs/train-1/prescription.json"
        and found["patch"] == "runs/train-1/fix.patch"
    )
    assert found["twin"]["survived"] is False and found["fixed"]["survived"] is True
    assert found["fixed"]["loss_last"] < 1 and found["steps_total"] > 100
    assert json.loads((cwd / found["prescription"]).read_text()) == found
    assert "http" not in (cwd / "runs/train-1/prescription.html").read_text().replace("http-equiv", "")

    subprocess.run(["git", "apply", found["patch"]], cwd=cwd, check=True)
    plain = call([*PYTHON, "-c", f"{(cwd / 'train.py').read_text()}\nprint(loss.item() < 1)"], cwd)
    assert plain.stdout == "True\n", plain.stderr


@pytest.mark.slow  # eight runs of torch or more
def test_no_cure_is_said_with_what_was_tried(cwd):
    (cwd / "train.py").write_text(HOPELESS)
    done = repair(cwd, "--max-runs", "3", "--seeds", "1", "--json", "-", "train.py")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["cured"], found["healthy"], found["prescription"], found["remedies"]) == (
        False,
        False,
        None,
        [],
    )
    assert found["arms"] and not any(arm["trains"] for arm in found["arms"])
    assert "No cure was found: none of" in done.stderr and files(cwd) == ["train.py"]


@pytest.mark.slow  # four runs of torch, one of them until its time is over: 40 s
def test_an_arm_that_hangs_is_ended_and_told(cwd):
    (cwd / "train.py").write_text(HANGS)
    done = repair(
        cwd, "--timeout", "40", "--max-runs", "1", "--max-seconds", "10", "--seeds", "1", "train.py"
    )
    assert done.returncode == 1, done.stderr
    assert "no end  it was still going after 40 s" in done.stdout


@pytest.mark.slow
def test_an_interrupt_ends_every_run_and_keeps_what_works(cwd):
    (cwd / "train.py").write_text(BAD_BATCH)
    with tempfile.TemporaryDirectory(prefix="sg-") as temporary:
        child = start([*STEADYGRAD, "repair", "--jobs", "1", "train.py"], cwd, {"TMPDIR": temporary})
        for line in child.stderr:
            if line.startswith(b"3/4") and b"skip" in line:
                break
        child.send_signal(signal.SIGINT)
        done = finish(child)
        assert done.returncode == 130, done.stderr
        assert "train.py was interrupted." in done.stderr and "What worked so far: skip" in done.stdout
        found = json.loads((cwd / "runs/train-1/prescription.json").read_text())
        assert (
            found["interrupted"] is True and found["fixed"]["survived"] and "skip_nonfinite" in found["plan"]
        )
        deadline = time.monotonic() + 10
        while _processes(temporary) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _processes(temporary) == [] and list(Path(temporary).glob("steadygrad*")) == []


def _processes(mark):
    """Ids of the processes that have ``mark`` in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if os.fsencode(mark) in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:  # it has ended, or is another user's
            continue
    return found
