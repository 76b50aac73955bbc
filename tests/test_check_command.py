"""``steadygrad check``, started as a user does. Three runs import torch; each carries several promises."""

import json
import signal
import tempfile
from pathlib import Path

import pytest

from steadygrad.cli import main
from tests.commands import STEADYGRAD, call, finish, start

TRAINS = """
import atexit, sys
import torch
from torch import nn

print("words", sys.argv[1:])
atexit.register(lambda: open("atexit.txt", "w").close())
data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
spare = torch.optim.Adam(model.parameters())  # built and never used
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
try:
    for epoch in range(100):
        for x, y in torch.utils.data.DataLoader(data, batch_size=8, num_workers=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
finally:
    torch.save(model.state_dict(), "model.pt")
print("trained to its end")
"""

EXPLODES = """
import torch
from torch import nn

print("said by the script")
torch.manual_seed(0)
layers = [m for _ in range(12) for m in (nn.Linear(16, 16), nn.ReLU())]
model = nn.Sequential(*layers, nn.Linear(16, 3))
for p in model.parameters():
    nn.init.normal_(p, std=3.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(1000):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.randn(8, 16)), torch.randint(0, 3, (8,))).backward()
    optimizer.step()
"""

BREAKS = """
import torch

model = torch.nn.Linear(4, 1)
for phase in range(2):  # a second training, with an optimizer of its own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.randn(8, 4)) - 1).square().mean().backward()
        optimizer.step()
raise LookupError("the script's own")
"""

KEYS = {"schema", "will_fail", "confidence", "causes", "layers", "steps_seen"}


@pytest.fixture
def temporary():
    """A short path: a loader's worker binds a socket below it, and hangs if its path has over 107 characters."""
    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        yield Path(folder)


@pytest.fixture
def cwd(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_a_steady_script_is_stopped_and_leaves_nothing(cwd, temporary, tmp_path):
    (cwd / "train.py").write_text(TRAINS)
    out = tmp_path / "out.json"
    done = call(
        [*STEADYGRAD, "check", "--steps", "4", "--json", out, "train.py", "--steps", "9", "--lr=0.1"],
        cwd,
        env={"TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stderr
    assert "words ['--steps', '9', '--lr=0.1']" in done.stdout and "trained to its end" not in done.stdout
    assert "train.py was stopped after 4 steps." in done.stdout and "Steady (0.9" in done.stdout
    assert "next: steadygrad run train.py --steps 9 --lr=0.1" in done.stdout
    assert "Traceback" not in done.stderr
    assert [p.name for p in cwd.iterdir()] == ["train.py"]
    assert list(temporary.glob("steadygrad*")) == []
    found = json.loads(out.read_text())
    assert found.keys() >= KEYS
    assert (found["will_fail"], found["steps_seen"], found["causes"]) == (False, 4, [])
    assert [set(row) for row in found["layers"]] == [{"name", "forward_gain", "backward_gain"}] * 2


def test_a_module_that_will_fail_as_json_alone(cwd):
    (cwd / "pkg").mkdir()
    (cwd / "pkg" / "__init__.py").touch()
    (cwd / "pkg" / "mod.py").write_text(EXPLODES)
    done = call([*STEADYGRAD, "check", "--json", "-", "--steps", "1", "-m", "pkg.mod"], cwd)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)  # nothing else is there
    assert "said by the script" in done.stderr
    assert (found["will_fail"], found["steps_seen"]) == (True, 1)
    assert found["causes"][0]["cause"] == "init_gain_large"
    assert found["causes"][0].keys() >= {"cause", "probability", "where", "for", "against", "advice"}
    assert found["confidence"] > 0.5 and len(found["layers"]) == 13


def test_a_script_that_fails_by_itself_after_a_few_steps(cwd):
    (cwd / "train.py").write_text(BREAKS)
    done = call([*STEADYGRAD, "check", "train.py"], cwd)
    assert done.returncode == 2
    assert "LookupError: the script's own" in done.stderr and 'train.py", line 1' in done.stderr
    assert "steadygrad" not in done.stderr  # the traceback is the script's alone
    assert "train.py ended with exit code 1 after 2 steps." in done.stdout
    assert "as far as it came" in done.stdout


def test_a_script_that_never_steps(cwd):
    (cwd / "defines.py").write_text("def train(): ...\nprint('hello')\n")
    done = call([*STEADYGRAD, "check", "--json", "-", "defines.py"], cwd)
    assert (done.returncode, done.stdout) == (2, "")
    assert "hello" in done.stderr and "defines.py ended, and no optimizer step was seen." in done.stderr
    assert "(a)" in done.stderr
    (cwd / "defines.py").write_text("import sys\nsys.exit(5)\n")
    done = call([*STEADYGRAD, "check", "defines.py"], cwd)
    assert done.returncode == 2 and "defines.py ended with exit code 5" in done.stderr
    assert sorted(p.name for p in cwd.iterdir()) == ["defines.py"]


def test_an_interrupt_reaches_the_script_and_nothing_stays(cwd, temporary):
    (cwd / "waits.py").write_text(
        "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(200)\nfinally:\n    print('tidied')\n"
    )
    child = start([*STEADYGRAD, "check", "waits.py"], cwd, {"TMPDIR": str(temporary)})
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGINT)
    done = finish(child)
    assert done.returncode == 130 and done.stdout == "tidied\n"
    assert "waits.py was interrupted." in done.stderr and list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["missing.py"], "no such script: missing.py"),
        (["-m", "no_such_module_here"], "no module named"),
        (["--steps", "0", "train.py"], "steps"),
        (["--json", ".", "train.py"], "is a directory"),
        (["no-such-command-here", "train.py"], "no such script or command"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('was run')")
    assert main(["check", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["train.py"]


def test_a_command_that_cannot_be_started(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF, but no")
    broken.chmod(0o755)
    assert main(["check", str(broken)]) == 2
    assert "cannot be started" in capsys.readouterr().err
