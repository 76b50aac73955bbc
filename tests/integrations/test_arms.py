"""Trainings in processes of their own: what is told of them, and how they end."""

import math
import os
import sys
from pathlib import Path

import pytest
import torch

from steadygrad.guard.durable import write_snapshot
from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import TrainingState
from steadygrad.integrations.arms import ArmRequest, ArmRunner, time_limit
from steadygrad.integrations.script import Target
from tests.commands import PYTHON, call

TRAIN = """
import os, sys
import torch
from torch import nn

torch.manual_seed(3)
workers = int(os.environ.get("WORKERS", 0))
class Data(torch.utils.data.Dataset):
    x = torch.randn(64, 4)
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return self.x[i], self.x[i].sum()
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
losses = []
try:
    for epoch in range(3):
        for x, y in torch.utils.data.DataLoader(Data(), batch_size=16, shuffle=True, num_workers=workers):
            optimizer.zero_grad()
            loss = (model(x)[:, 0] - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        torch.save({"model": model.state_dict(), "epoch": epoch}, "last.pt")
        model.load_state_dict(torch.load("last.pt")["model"])
finally:
    print("finally", losses)
if "fail" in sys.argv:
    raise SystemExit(int(sys.argv[1]))
"""


def runner(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, *args: str, **more) -> ArmRunner:
    folder.mkdir(exist_ok=True)
    (folder / "s.py").write_text(text)
    monkeypatch.chdir(folder)
    return ArmRunner(["s.py", *args], Target("s.py", args), **more)


@pytest.mark.slow
def test_arms_side_by_side(tmp_path, monkeypatch):
    """The oracle of the twin is the plain script."""
    folder = tmp_path / "a \u00fc"
    told, begun, finished = [], [], []
    half = TRAIN.replace("lr=0.05", "lr=0.025")
    requests = [
        ArmRequest(survey=True),
        ArmRequest(),
        ArmRequest({"lr_factor": 0.5}),
        ArmRequest(patched={"s.py": half}),
        ArmRequest(seed_offset=1),
        ArmRequest(steps=5),
        ArmRequest({"lr_factor": "much"}),
        ArmRequest({"no_such_change": 1}),
    ]
    with runner(folder, monkeypatch, TRAIN) as arms:
        assert arms.limit(ArmRequest()) is None
        results = arms.run_all(
            requests,
            lambda *said: told.append(said),
            begun.append,
            lambda index, result: finished.append((index, result)),
        )
        assert arms.limit(ArmRequest()) > 60
    twin, again, arm, patched, other, short, wrong, unknown = results
    assert list(folder.iterdir()) == [folder / "s.py"]
    assert dict(finished) == dict(enumerate(results)) and sorted(begun) == list(range(len(requests)))
    plain = call([*PYTHON, "s.py"], folder)
    assert twin.stdout_tail == plain.stdout and twin.report.steps == 12 and twin.report.whole
    assert [repr(loss) for loss in twin.report.losses] == plain.stdout.split("[")[1].strip("]\n").split(", ")
    assert twin.files_written == (str(folder / "last.pt"),) and not twin.escaped
    assert {step for index, step, _ in told if index == 0} <= set(range(1, 13)) and len(told) >= 6
    assert all(loss in results[i].report.losses for i, _, loss in told)
    assert twin.fingerprint == again.fingerprint != arm.fingerprint == patched.fingerprint
    assert len({twin.fingerprint, arm.fingerprint, other.fingerprint, short.fingerprint, ""}) == 5
    assert other.seeds_shifted == 1 and twin.seeds_shifted == 0
    assert short.report.losses == twin.report.losses[:5] and not short.report.whole
    assert "finally" not in short.stdout_tail and short.exit_code == 0
    for result in (wrong, unknown):
        assert result.not_applicable and result.report is None and not result.user_error
    assert "no_such_change" in unknown.note
    assert all(not r.note for r in (twin, arm, patched, other, short))


ENDINGS = {
    "raise ValueError('of its own')": (
        1,
        "ValueError: of its own",
        "it took no optimizer step (exit code 1)",
    ),
    "raise SystemExit(3)": (3, "", "it took no optimizer step (exit code 3)"),
    "input()": (1, "EOFError", "it took no optimizer step (exit code 1)"),
    "import os; os.abort()": (-6, "", "it took no optimizer step (exit code -6)"),
    "pass": (0, "", "it took no optimizer step (exit code 0)"),
}


@pytest.mark.parametrize("text", ENDINGS)
def test_what_the_script_does_itself_is_told(text, tmp_path, monkeypatch):
    code, said, note = ENDINGS[text]
    with runner(tmp_path, monkeypatch, text) as arms:
        result = arms.run(ArmRequest())
    assert (result.exit_code, result.note, result.report) == (code, note, None)
    assert said in result.stderr_tail and result.user_error == (code != 0)
    assert "steadygrad" not in result.stderr_tail


def test_one_that_hangs_is_ended_and_the_others_are_not(tmp_path, monkeypatch):
    text = "import os, time\nif os.environ['PYTHONHASHSEED'] == '7':\n    print('here', flush=True); time.sleep(1000)"
    with runner(tmp_path, monkeypatch, text, timeout=3.0) as arms:
        monkeypatch.setenv("PYTHONHASHSEED", "7")
        hung = arms.run(ArmRequest())
        monkeypatch.setenv("PYTHONHASHSEED", "8")
        ended = arms.run(ArmRequest())
    assert hung.timed_out and hung.exit_code is None and hung.note == "it was still going after 3 s"
    assert hung.stdout_tail == "here\n" and not hung.user_error
    assert not ended.timed_out and ended.exit_code == 0


def test_the_time_of_later_arms_follows_from_the_first():
    short, whole = ArmRequest(steps=5), ArmRequest()
    assert time_limit(None, {}, whole, 2) is time_limit(None, {5: 3.0}, whole, 2) is None
    assert time_limit(None, {5: 3.0}, short, 2) == 90
    assert time_limit(None, {None: 30.0}, short, 2) == time_limit(None, {None: 30.0}, whole, 2) == 360
    assert time_limit(7.0, {None: 30.0}, whole, 2) == time_limit(7.0, {}, whole, 2) == 7


def test_what_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ArmRunner([str(tmp_path / "absent")], None) as arms, pytest.raises(FileNotFoundError):
        arms.run(ArmRequest())
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        ArmRunner(["x"], None, jobs=0)


@pytest.mark.slow
def test_a_report_of_a_script_that_fails_later(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    with runner(tmp_path, monkeypatch, TRAIN, "4", "fail") as arms:
        result = arms.run(ArmRequest())
    assert result.exit_code == 4 and result.user_error and result.report.steps == 12 and result.note == ""
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.slow
def test_a_script_that_is_gone_at_once(tmp_path, monkeypatch):
    text = TRAIN.replace('print("finally", losses)', "os._exit(0)") + "\n"
    with runner(tmp_path, monkeypatch, text) as arms:
        result = arms.run(ArmRequest())
    assert result.report is None and "ended without a word after it had begun to train" in result.note


UNSEEDED = TRAIN.replace("torch.manual_seed(3)", "").replace("range(3)", "range(1)")


@pytest.mark.slow
def test_a_script_that_seeds_nothing(tmp_path, monkeypatch):
    with runner(tmp_path, monkeypatch, UNSEEDED) as arms:
        first, again, other = arms.run_all([ArmRequest(), ArmRequest(), ArmRequest(seed_offset=2)])
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert other.seeds_shifted == 0 and "seeds nothing itself" in other.note and not first.note


RESUMED = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
assert torch.equal(model(torch.zeros(1, 4))[0], model.bias)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
x = torch.randn(8, 4)
for _ in range(3):
    loss = model(x).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step(); schedule.step()
    print(repr(loss.item()), optimizer.param_groups[0]["lr"])
"""


@pytest.mark.slow
def test_an_arm_begins_with_a_snapshot(tmp_path, monkeypatch):
    """The oracle: the same training here, from the same state."""
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)

    def step(x: torch.Tensor) -> str:
        loss = model(x).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
        return f"{loss.item()!r} {optimizer.param_groups[0]['lr']}"

    for _ in range(4):
        step(torch.randn(8, 4))
    for name, owner in (("run", model), ("other", torch.nn.Linear(9, 1))):
        snapshot = Snapshot()
        snapshot.take(TrainingState([owner], *([optimizer], [schedule]) if owner is model else ()), step=4)
        write_snapshot(tmp_path / name / "snapshots", snapshot)
    torch.manual_seed(0)
    torch.nn.Linear(4, 1)
    x = torch.randn(8, 4)
    wanted = [step(x) for _ in range(3)]
    requests = [ArmRequest(resume_from=name) for name in ("run", "other", "none")]
    with runner(tmp_path, monkeypatch, RESUMED) as arms:
        same, other, none = arms.run_all(requests)
    assert same.stdout_tail.splitlines() == wanted, same.stderr_tail
    assert other.not_applicable and "does not fit the run" in other.note
    assert none.not_applicable and "has no sound snapshot" in none.note


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun")
def test_a_launcher_and_its_workers(tmp_path, monkeypatch):
    text = "import os, torch\ntorch.distributed.init_process_group('gloo')\n" + TRAIN.replace(
        "model = nn.Seq", "model = nn.parallel.DistributedDataParallel(nn.Seq"
    ).replace("nn.Linear(8, 1))", "nn.Linear(8, 1)))")
    (tmp_path / "s.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29713",
        "s.py",
    ]
    with ArmRunner(words, None, jobs=1) as arms:  # one port
        twin, arm, patched = arms.run_all(
            [
                ArmRequest(),
                ArmRequest({"lr_factor": 0.5}, steps=4),
                ArmRequest(patched={"s.py": text.replace("lr=0.05", "lr=0.025")}, steps=4),
            ]
        )
    assert twin.report is not None and twin.report.steps == 12, twin.stderr_tail
    assert arm.report.losses == patched.report.losses != twin.report.losses[:4]
    assert os.listdir() == ["s.py"] and all(map(math.isfinite, twin.report.losses))
