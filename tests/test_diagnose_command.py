"""``steadygrad diagnose``: what it prints for people and for machines, and what it says to bad input."""

import json

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.cli import main

KEYS = {"schema", "run_dir", "causes", "findings", "first_nonfinite"}


def train(folder, name, lr, spoil=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x = torch.randn(64, 8)
    with sg.watch(model, optimizer, guard="warn", runs=folder / "runs", name=name) as watcher:
        for step in range(80):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), x[:, :1].sin())
            if step == spoil:
                loss = (loss * 0).log() + loss
            loss.backward()
            optimizer.step()
    return watcher.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    summaries = {"healthy": train(folder, "healthy", 0.1), "high": train(folder, "high", 60.0)}
    summaries["log"] = train(folder, "log", 0.1, spoil=40)
    return folder, summaries


@pytest.fixture
def diagnose(folder, monkeypatch, capsys):
    """The command in the folder of the runs: exit code, standard output, standard error."""
    monkeypatch.chdir(folder[0])
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words):
        code = main(["diagnose", *words])
        return code, *capsys.readouterr()

    return run


def test_a_healthy_run(diagnose):
    code, out, err = diagnose("healthy-1")
    assert (code, err) == (0, "") and out.startswith("runs/healthy-1: 80 steps; ")
    assert "No sign of trouble." in out and "next" not in out


def test_a_run_that_exploded(diagnose):
    code, out, err = diagnose("runs/high-1")
    assert (code, err) == (0, "")
    assert "lr too large" in out and "next: steadygrad explain " in out and "\n        do " in out
    assert all(len(line) <= 120 for line in out.splitlines()) and "\x1b" not in out


@pytest.mark.parametrize("name", ["healthy", "high", "log"])
def test_json_has_the_keys_of_the_contract_and_the_causes_of_the_session(diagnose, folder, name):
    code, out, err = diagnose(f"{name}-1", "--json", "-")
    found = json.loads(out)
    assert (code, err) == (0, "") and found.keys() >= KEYS
    summary = folder[1][name]
    assert [(c["cause"], c["probability"]) for c in found["causes"]] == [
        (c.cause, pytest.approx(c.probability)) for c in summary.causes
    ]
    assert [f["code"] for f in found["findings"]] == [f.code for f in summary.findings]
    for cause in found["causes"]:
        assert cause.keys() >= {"cause", "probability", "where", "for", "against", "advice"}
    for finding in found["findings"]:
        assert finding.keys() >= {"code", "rule", "step", "where", "message", "evidence"}


def test_the_first_value_that_was_not_finite_is_shown_with_its_line(diagnose):
    first = json.loads(diagnose("log-1", "--json", "-")[1])["first_nonfinite"]
    assert first is not None and first.keys() >= {
        "step",
        "kind",
        "module",
        "op",
        "file",
        "line",
        "batch",
        "sample",
    }
    assert (first["step"], first["op"]) == (40, "log")
    out = diagnose("log-1")[1]
    assert "first " in out and "log" in out and "step 40" in out


def test_json_to_a_file_leaves_the_words_where_they_are(diagnose, tmp_path):
    code, out, _ = diagnose("high-1", "--json", str(tmp_path / "out.json"))
    assert code == 0 and "lr too large" in out
    assert json.loads((tmp_path / "out.json").read_text())["run_dir"] == "runs/high-1"


def test_a_cut_trace_is_said_to_be_one(diagnose, folder):
    for file in (folder[0] / "runs" / "high-1").glob("trace-*"):
        copy = folder[0] / "runs" / "cut-1" / file.name
        copy.parent.mkdir(exist_ok=True)
        data = file.read_bytes()
        copy.write_bytes(data[: len(data) // 2])
    code, out, err = diagnose("cut-1")
    assert (code, err) == (0, "") and "note: " in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["no-such-run"], "is no run directory"),
        (["."], "is no run directory"),
        (["train.py"], "is no run directory"),
        (["../.."], "is no run directory"),
        (["high-1", "--json", "."], "is a directory"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(diagnose, folder, words, message):
    (folder[0] / "train.py").write_text("")
    before = sorted(folder[0].rglob("*"))
    code, out, err = diagnose(*words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert sorted(folder[0].rglob("*")) == before


def test_reading_changes_nothing(diagnose, folder):
    run = folder[0] / "runs" / "high-1"
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    diagnose("high-1")
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
