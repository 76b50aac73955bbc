"""``steadygrad diagnose --rerun``, started as a user does: four runs import torch."""

import json
import os
import select
import signal

import pytest

from steadygrad.cli import main
from steadygrad.integrations.rerun import NoReport, rerun_script
from tests.commands import PYTHON, STEADYGRAD, call, finish, start

TOO_FAST = """
import os, random, sys
import numpy, torch
from torch import nn

record = open(f"losses-{os.getpid()}.txt", "w")
print(random.random(), numpy.random.rand(), torch.rand(1).item(), list({"a", "b", "c", "d"}), file=record)
torch.manual_seed(0)
assert sys.argv[1:] == ["--lr", "10"]
y = torch.randint(0, 4, (512,))
x = torch.randn(4, 16)[y] * 2 + torch.randn(512, 16)
model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=float(sys.argv[2]), momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
for _ in range(60):
    rows = torch.randint(0, 512, (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
    schedule.step()
    print(repr(loss.item()), schedule.get_last_lr(), file=record)
print("done", file=record)
"""

ENDLESS = """
import subprocess, sys
import torch

held = open("alive", "w")  # as long as it is open anywhere, somebody lives
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdout=held)
w = torch.ones(1, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.1)
while True:
    w.square().sum().backward()
    optimizer.step()
    if held:
        held.write("stepped")
        held.flush()
"""


class Alive:
    """A pipe that the children of a test hold open."""

    def __init__(self, path):
        os.mkfifo(path)
        self._read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def data(self) -> bytes:
        """What was written, when something was; b"" when all who could write are gone."""
        assert select.select([self._read], [], [], 60)[0], "a child lives on"
        return os.read(self._read, 1 << 16)

    def gone(self) -> bool:
        while self.data():
            pass
        return True


@pytest.mark.slow
def test_the_twin_is_the_script_and_the_cause_is_confirmed(tmp_path):
    cwd, temporary, out = tmp_path / "work", tmp_path / "tmp", tmp_path / "out.json"
    cwd.mkdir(), temporary.mkdir()
    (cwd / "train.py").write_text(TOO_FAST)
    assert call([*PYTHON, "train.py", "--lr", "10"], cwd).returncode == 0
    (plain,) = cwd.glob("losses-*.txt")
    losses = plain.read_text().splitlines()[1:]
    plain.unlink()
    done = call(
        [*STEADYGRAD, "diagnose", "--rerun", "--json", out, "train.py", "--lr", "10"],
        cwd,
        env={"TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stderr
    assert list(temporary.glob("steadygrad*")) == []
    found = json.loads(out.read_text())
    runs = [path.read_text().splitlines() for path in cwd.glob("losses-*.txt")]
    assert sum(run[1:] == losses for run in runs) == 1, "the twin alone is the script"
    assert len({run[0] for run in runs}) == 1, "what nobody seeds is the same in all runs"
    assert len(runs) == 1 + len(found["arms"]) and all(run[-1] == "done" for run in runs)
    rates = {tuple(line.split()[1:]) for run in runs for line in run[1:2]}
    assert len(rates) == 1, "the script sees its own rate"
    arm = next(a for a in found["arms"] if a["name"] == "lr / 10")
    assert arm.keys() == {"name", "cause", "verdict", "loss_last", "recovered"}
    assert arm["recovered"] and arm["loss_last"] < 0.65 * found["twin"]["loss_last"]
    assert found["causes"][0]["cause"] == "lr_too_large" and found["steps"] == 60
    assert found.keys() >= {"schema", "run_dir", "causes", "findings", "first_nonfinite", "arms"}
    assert "confirmed: with lr / 10 the run trains" in " ".join(done.stdout.split())
    assert "nothing (the twin)" in done.stdout and "recovered: " in done.stdout
    assert "running train.py: lr / 10" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_an_interrupt_ends_every_run(tmp_path):
    alive = Alive(tmp_path / "alive")
    (tmp_path / "train.py").write_text(ENDLESS)
    (tmp_path / "tmp").mkdir()
    child = start(
        [*STEADYGRAD, "diagnose", "--rerun", "train.py"], tmp_path, env={"TMPDIR": str(tmp_path / "tmp")}
    )
    try:
        os.set_blocking(alive._read, True)
        keeper = os.open(tmp_path / "alive", os.O_WRONLY)  # or the pipe is at its end before anybody has come
        assert alive.data().startswith(b"stepped")
        os.close(keeper)
        child.send_signal(signal.SIGINT)
        done = finish(child)
    except BaseException:
        child.terminate()
        raise
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "train.py was interrupted." in done.stderr
    assert alive.gone()
    assert list((tmp_path / "tmp").glob("steadygrad*")) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    alive = Alive(tmp_path / "alive")
    words = ["sh", "-c", f"exec 3>{tmp_path}/alive; echo begun >&3; sleep 1000 & sleep 1000"]
    with pytest.raises(NoReport, match="still going after 1 s"):
        rerun_script(words, None, timeout=1.0)
    assert alive.data() == b"begun\n"
    assert alive.gone()


def test_a_script_without_a_step_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", "--rerun", "--json", "o.json", "--", "sh", "-c", "echo oops >&2; exit 3"]) == 2
    said = capsys.readouterr().err
    assert "sh cannot be diagnosed: it took no optimizer step (exit code 3). It said:\noops" in said
    assert main(["diagnose", "--rerun", "missing.py"]) == 2
    assert "no such script: missing.py" in capsys.readouterr().err
    assert main(["diagnose", "--rerun", "--jobs", "0", "x.py"]) == 2
    for words in (["train.py", "--steps", "3"], ["a", "b"]):
        assert main(["diagnose", *words]) == 2
        assert "diagnose takes one RUN" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
