"""The real tools: what arrives in them, and that the script's own use of them is not disturbed.

Each runs in a process of its own: they keep much in their modules.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.slow  # a process each, and the packages take seconds to import

HEAD = """
import json, math, os, random, sys
from pathlib import Path
import numpy as np, torch
from steadygrad.records import Action, Finding, StepStats
from steadygrad.sinks.fan import Sinks

recorded = Path(sys.argv[1])
notes = []

def a_step(i):
    norms = np.array([3.0, 4.0 if i != 7 else math.inf], dtype=np.float32)
    return StepStats(i, 0, loss=math.nan if i == 5 else 1.0 / (i + 1), grad_norm=float(np.sqrt((norms**2).sum())),
                     clipped_grad_norm=1.0, grad_norms=norms, lr=0.1, applied=i not in (5, 7))

def feed(sinks, steps):
    for i in steps:
        sinks.step(a_step(i), 1, 2)
        if i == 5:
            sinks.finding(Finding("G100", "nonfinite_loss", 5, "loss", "the loss is NaN", severity="alarm"))
            sinks.action(Action(5, "skip", "the loss is NaN", "G100"))

def drain(sinks):
    assert all(feeder.drain() for feeder in sinks._feeders)

def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

def end(**found):
    print(); print(json.dumps({"notes": notes, **found}))
"""


def run(tool, code, recorded, tmp_path, **env):
    """Run code after HEAD; the object it gave to ``end``."""
    if find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio")}
    quiet |= {"HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "TRACKIO", "STEADYGRAD"))
    }
    paths = os.pathsep.join(p for p in sys.path if p)
    out = subprocess.run(
        [sys.executable, "-c", HEAD + code, str(recorded)],
        cwd=tmp_path, env={**kept, **quiet, "PYTHONPATH": paths, **env}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    *printed, last = out.stdout.splitlines()
    return {**json.loads(last), "printed": [line for line in printed if line]}


def records(data):
    """The records in a ``.wandb`` file: a LevelDB log after seven bytes, in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if room < 7 or kind == 0:
            place += room
            continue
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def rows_of(folder):
    """The rows of an offline W&B run, as (step, row), and the names of its artifacts."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    rows, artifacts = [], []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append((record.history.step.num, row))
        elif record.HasField("artifact"):
            artifacts.append(record.artifact.name)
        elif record.HasField("request") and record.request.HasField("log_artifact"):
            artifacts.append(record.request.log_artifact.artifact.name)
    return rows, artifacts


# ---------------------------------------------------------------------- TensorBoard
def test_tensorboard(recorded, tmp_path):
    code = """
before = streams()
sinks = Sinks(["tensorboard"], recorded, notes.append)
sinks.begin(); feed(sinks, range(20)); sinks.close()
assert streams() == before
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
got = EventAccumulator(str(recorded / "tensorboard"), size_guidance={"tensors": 0}); got.Reload()
tags = got.Tags()
loss = got.Scalars("steadygrad/loss")
texts = {t: [(e.step, e.tensor_proto.string_val[0].decode()) for e in got.Tensors(t)] for t in tags["tensors"]}
norm = {e.step: e.value for e in got.Scalars("steadygrad/grad_norm")}
end(steps=[e.step for e in loss], nan=math.isnan(loss[5].value), inf=norm[7] == math.inf,
    tags=tags["scalars"], texts=texts)
"""
    got = run("tensorboard", code, recorded, tmp_path)
    assert got["notes"] == [] and got["printed"] == []
    assert got["steps"] == list(range(20)) and got["nan"] and got["inf"]
    assert "steadygrad/skipped" in got["tags"]
    assert got["texts"]["steadygrad/incident/text_summary"][0] == [
        5, "step 5: nonfinite_loss (alarm, loss): the loss is NaN"
    ]  # fmt: skip
    assert len(got["texts"]["steadygrad/incident/text_summary"]) == 2
    assert got["texts"]["steadygrad/report/text_summary"][0][1].endswith("report.html")


# ---------------------------------------------------------------------- W&B
def test_wandb_run_of_ours(recorded, tmp_path):
    code = """
import wandb
before = streams()
sinks = Sinks(["wandb"], recorded, notes.append)
sinks.begin(); feed(sinks, range(10))
assert wandb.run is None
sinks.close()
assert streams() == before and wandb.run is None
end()
"""
    got = run("wandb", code, recorded, tmp_path, WANDB_DIR=str(tmp_path))
    assert got["notes"] == [] and got["printed"] == []
    (folder,) = recorded.glob("wandb/offline-run-*")
    rows, artifacts = rows_of(folder)
    losses = {row["steadygrad/step"]: row["steadygrad/loss"] for _, row in rows if "steadygrad/loss" in row}
    assert list(losses) == list(range(10)) and losses[1] == 0.5
    assert str(losses[5]).lower() == "nan"
    norms = [row["steadygrad/grad_norm"] for _, row in rows if row.get("steadygrad/step") == 7]
    assert str(norms[0]).lower() in ("inf", "infinity")
    assert [r["steadygrad/incident"] for _, r in rows if "steadygrad/incident" in r] == [
        "step 5: nonfinite_loss (alarm, loss): the loss is NaN", "step 5: skip (action): the loss is NaN"
    ]  # fmt: skip
    assert any("steadygrad-report" in name for name in artifacts)


SCRIPT_WITH_A_RUN = """
import wandb
run = wandb.init(project="mine")
sinks = Sinks(NAMES, recorded, notes.append)
sinks.begin()
for i in range(30):
    feed(sinks, [i])
    if i % 3 == 0:
        drain(sinks)
        run.log({"mine": i}, step=STEP)
sinks.close()
assert wandb.run is run
run.log({"end": 1})
run.finish()
end()
"""


@pytest.mark.parametrize("step", ["i", "None"])
def test_wandb_run_of_the_script_keeps_its_rows_and_steps(step, recorded, tmp_path):
    """The script's rows are what they are without the sink, whether it counts its steps or W&B does."""
    mine = {}
    for names in ([], ["wandb"]):
        folder = tmp_path / f"with{len(names)}"
        folder.mkdir()
        code = SCRIPT_WITH_A_RUN.replace("STEP", step).replace("NAMES", str(names))
        assert run("wandb", code, recorded, folder, WANDB_DIR=str(folder))["notes"] == []
        rows, artifacts = rows_of(folder / "wandb")
        mine[len(names)] = [(n, row[key]) for n, row in rows for key in ("mine", "end") if key in row]
    assert mine[0] == mine[1] and len(mine[0]) == 11
    assert sum("steadygrad/loss" in row for _, row in rows) >= 5
    assert any("steadygrad-report" in name for name in artifacts)


def test_wandb_that_is_switched_off(recorded, tmp_path):
    code = """
sinks = Sinks(["wandb"], recorded, notes.append)
sinks.begin(); feed(sinks, range(10)); sinks.close()
end()
"""
    assert run("wandb", code, recorded, tmp_path, WANDB_MODE="disabled")["notes"] == []


def test_wandb_without_a_key_asks_nobody_and_records_offline(recorded, tmp_path):
    code = """
for old in recorded.glob("wandb/offline-run-*"):
    old.rename(old.with_name("old" + old.name))
sinks = Sinks(["wandb"], recorded, notes.append)
sinks.begin(); feed(sinks, range(10)); sinks.close()
end()
"""
    got = run(
        "wandb",
        code,
        recorded,
        tmp_path,
        WANDB_MODE="online",
        HOME=str(tmp_path),
        NETRC=str(tmp_path / "none"),
    )
    assert got["notes"] == []
    assert len(list(recorded.glob("wandb/offline-run-*"))) == 1


# ---------------------------------------------------------------------- MLflow
MLFLOW = """
import mlflow
client = mlflow.MlflowClient()
def found(run_id):
    data = client.get_run(run_id)
    loss = [m.step for m in client.get_metric_history(run_id, "steadygrad/loss")]
    end(steps=loss, status=data.info.status, name=data.info.run_name, tag=data.data.tags["steadygrad.incident"],
        nan=[math.isnan(m.value) for m in client.get_metric_history(run_id, "steadygrad/loss")],
        norms=[m.value for m in client.get_metric_history(run_id, "steadygrad/grad_norm")],
        files=[f.path for f in client.list_artifacts(run_id, "steadygrad")])
"""


def check_mlflow(got):
    assert got["notes"] == [] and got["printed"] == []
    assert got["steps"] == [0, 5, 7, 10, 20] and got["nan"] == [False, True, False, False, False]
    assert got["norms"][2] > 1e300, "MLflow keeps an infinity as its largest number"
    assert got["tag"] == "step 5: skip (action): the loss is NaN"
    assert sorted(got["files"]) == ["steadygrad/incidents.txt", "steadygrad/report.html"]


def test_mlflow_run_of_ours(recorded, tmp_path):
    code = (
        MLFLOW
        + """
before = streams()
sinks = Sinks(["mlflow"], recorded, notes.append)
sinks.begin(); feed(sinks, range(25)); sinks.close()
assert streams() == before and mlflow.active_run() is None
(run,) = client.search_runs(["0"])
found(run.info.run_id)
"""
    )
    got = run("mlflow", code, recorded, tmp_path)
    check_mlflow(got)
    assert got["status"] == "FINISHED" and got["name"] == recorded.name


def test_mlflow_run_of_the_script_is_left_open(recorded, tmp_path):
    code = (
        MLFLOW
        + """
run = mlflow.start_run(run_name="mine")
sinks = Sinks(["mlflow"], recorded, notes.append)
sinks.begin(); feed(sinks, range(25)); sinks.close()
assert mlflow.active_run().info.run_id == run.info.run_id
found(run.info.run_id)
"""
    )
    got = run("mlflow", code, recorded, tmp_path)
    check_mlflow(got)
    assert got["status"] == "RUNNING" and got["name"] == "mine"


# ---------------------------------------------------------------------- Trackio
TRACKIO = """
import trackio
from trackio.sqlite_storage import SQLiteStorage
def found(project, name):
    rows = SQLiteStorage.get_logs(project, name)
    alerts = SQLiteStorage.get_alerts(project, run_name=name)
    end(rows=[{k: repr(v) for k, v in row.items()} for row in rows],
        alerts=[(a["level"], a["step"], a["text"]) for a in alerts],
        blobs=len([p for p in Path(os.environ["TRACKIO_DIR"]).rglob("blobs/**/*") if p.is_file()]))
"""


def check_trackio(got):
    assert got["notes"] == []
    ours = [row for row in got["rows"] if "steadygrad/loss" in row]
    steps = [int(row["steadygrad/step"]) for row in ours]
    assert steps == sorted(set(steps)) and len(steps) >= 5
    by_step = {row["steadygrad/step"]: row for row in ours}
    assert by_step["5"]["steadygrad/loss"].strip("'").lower() == "nan"
    assert by_step["7"]["steadygrad/grad_norm"].strip("'").lower() in ("inf", "infinity")
    assert sorted(got["alerts"]) == [
        ["error", 5, "step 5: nonfinite_loss (alarm, loss): the loss is NaN"],
        ["warn", 5, "step 5: skip (action): the loss is NaN"],
    ]
    assert got["blobs"] == 1


def test_trackio_run_of_ours(recorded, tmp_path):
    code = (
        """
before = streams()
sinks = Sinks(["trackio"], recorded, notes.append)
sinks.begin()
assert streams() == before, "trackio draws a random number when it is imported"
feed(sinks, range(10)); sinks.close()
assert streams() == before
"""
        + TRACKIO
        + f"""
found("steadygrad", "{recorded.name}")
"""
    )
    got = run("trackio", code, recorded, tmp_path)
    check_trackio(got)
    assert got["printed"] == []


def test_trackio_run_of_the_script_keeps_its_steps(recorded, tmp_path):
    code = (
        TRACKIO
        + """
run = trackio.init("mine", name="r", embed=False)
sinks = Sinks(["trackio"], recorded, notes.append)
sinks.begin()
for i in range(10):
    if i in (1, 6):
        drain(sinks)
        trackio.log({"mine": i})
    feed(sinks, [i])
sinks.close()
trackio.log({"mine": 99})
trackio.finish()
found("mine", "r")
"""
    )
    got = run("trackio", code, recorded, tmp_path)
    check_trackio(got)
    mine = [(row["step"], row["mine"]) for row in got["rows"] if "mine" in row]
    assert mine == [("0", "1"), ("1", "6"), ("2", "99")]
