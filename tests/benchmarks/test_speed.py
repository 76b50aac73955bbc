"""The table of speed can be made, says what was measured, and loses no row. Nothing is timed here."""

import json
import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import speed, speed_equal, speed_store
from benchmarks.speed_clip import clip_rows
from benchmarks.speed_clock import beyond, interleave, ratio, typical
from benchmarks.speed_models import WORKLOADS, training
from benchmarks.speed_monitor import TURN, Monitor, monitor_rows, worst_part
from benchmarks.speed_peers import installed, watcher_rows
from benchmarks.speed_rows import Effort, Missing, row
from benchmarks.speed_run import million_rows, process_rows, step_rows
from benchmarks.speed_state import snapshot_rows, tensors

ROOT = Path(__file__).parents[2]
LEAST = Effort(0.0)
SCRIPT = """
import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(parser.parse_args().steps):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).square().mean().backward()
    optimizer.step()
"""


# ---------------------------------------------------------------------- the clock
def test_every_candidate_has_its_turn_in_every_round_and_only_it_is_on_the_clock():
    now, log = [0.0], []

    def take(name, seconds):
        log.append(name)
        now[0] += seconds

    @contextmanager
    def around():
        take("in", 100)
        yield
        take("out", 100)

    found = interleave(
        {"a": partial(take, "a", 1), "b": partial(take, "b", 2)},
        rounds=5,
        warm=2,
        clock=lambda: now[0],
        before=partial(take, "before", 100),
        around={"b": around},
    )
    assert found == {"a": [1.0] * 5, "b": [2.0] * 5}
    assert [log.count(name) for name in ("a", "b", "before", "in", "out")] == [7, 7, 14, 7, 7]
    turns = "".join(name for name in log if name in "ab")
    assert {turns[i : i + 2] for i in range(0, 14, 2)} == {"ab", "ba"}


def test_a_ratio_is_that_of_the_pairs():
    slow_down = [1.0, 2.0, 4.0]
    assert ratio([3 * s for s in slow_down], slow_down) == (3.0, 3.0, 3.0, 3)
    assert beyond([5 * s for s in slow_down], [3 * s for s in slow_down], slow_down).value == 2.0


def test_an_interval_holds_the_median_and_narrows():
    few, many = typical([1.0, 2.0, 3.0, 4.0, 5.0]), typical([1.0, 2.0, 3.0, 4.0, 5.0] * 40)
    assert few.low < few.value == many.value == 3.0 < few.high
    assert many.high - many.low < few.high - few.low


def test_effort_is_a_share_of_the_rounds_but_some():
    assert [Effort().of(30), Effort(0.5).of(30), LEAST.of(30), LEAST.of(2), LEAST.of(5, least=1)] == [
        30,
        15,
        3,
        2,
        1,
    ]


# ---------------------------------------------------------------------- what is measured
def test_the_monitor_sees_the_steps_inside_its_block_and_no_others():
    watched, other = training(WORKLOADS["tiny"]), training(WORKLOADS["tiny"])
    monitor = Monitor(watched.model)
    watched.step()
    with monitor.listening(watched.optimizer):
        watched.step()
        other.step()
        watched.step()
    watched.step()
    assert len(monitor.steps) == 2 and min(monitor.steps) > 0


def test_the_monitor_changes_no_bit():
    plain = training(WORKLOADS["tiny"])
    torch.manual_seed(1)
    for _ in range(5):
        plain.step()
    watched = training(WORKLOADS["tiny"])
    monitor = Monitor(watched.model)
    torch.manual_seed(1)
    with monitor.listening(watched.optimizer):
        for _ in range(5):
            watched.step()
    assert len(monitor.steps) == 5
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_worst_part_is_slow_at_every_turn():
    steps = [0.1] * (6 * 16)
    for i in range(3, len(steps), 16):
        steps[i] = 0.3
    steps[40] = 9.0  # an outlier
    assert worst_part(steps, start=0, parts=16) == 0.3


def test_steps_that_have_their_activations_read_and_the_first_ones_are_no_part():
    steps = [9.0] * 20 + [0.1] * 40  # the part of step 50 has one more turn, at 34
    steps[TURN] = 9.0
    assert worst_part(steps, start=20, parts=16) == 0.1


def test_one_copy_of_the_state():
    run = training(WORKLOADS["tiny"])
    run.step()
    weights = sum(p.numel() for p in run.model.parameters())
    counters = len(list(run.model.parameters()))
    assert sum(t.nbytes for t in tensors(run.model, run.optimizer)) == 4 * (3 * weights + counters)


def test_equality_tells_equal_from_not(monkeypatch):
    monkeypatch.setattr(speed_equal, "STEPS", 4)
    a = speed_equal.trained("AdamW", 1e9, folded=True)
    assert speed_equal.different(a, speed_equal.trained("AdamW", 1e9, folded=False)) == 0
    b = speed_equal.trained("AdamW", 1e9, folded=True, left_out=(2,))
    assert speed_equal.different(a, b) == len(a)
    assert speed_equal.distance([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0])]) == pytest.approx(
        1 / math.sqrt(34)
    )
    assert speed_equal.distance(a, a) == 0


def of_steps(effort):
    return step_rows("tiny", partial(training, WORKLOADS["tiny"]), 3, effort)


@pytest.mark.parametrize(
    "job",
    [
        partial(clip_rows, "tiny"),
        partial(monitor_rows, "tiny"),
        partial(watcher_rows, "anomaly", "tiny"),
        partial(snapshot_rows, "tiny"),
        partial(million_rows, block=10),
        of_steps,
    ],
    ids=["clip", "monitor", "anomaly", "snapshots", "million", "steps"],
)
def test_a_job_makes_its_rows(job):
    rows = job(LEAST)
    assert rows and len({r["name"] for r in rows}) == len(rows)
    assert all(math.isfinite(r["value"]) and r["rounds"] >= 1 and r["unit"] and r["cadence"] for r in rows)


@pytest.mark.slow
def test_a_run_in_pairs_of_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    share, cpu, seconds = process_rows("small", script, [], 5, 0.02, LEAST)
    assert share["goal"] == 0.02 and math.isfinite(share["value"]) and seconds["value"] > 0
    assert "whole processes of 5 steps, median of 1 pairs" in share["cadence"]


# ---------------------------------------------------------------------- peers, and the table on disk
def made(job, value, quick=False, goal=1.0):
    more = {"job": job, "quick": quick, "seconds": 1, "hardware": "", "torch": "", "date": "", "commit": ""}
    return [{**row(f"{job}'s", value, unit="ratio", cadence="", goal=goal), **more}]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_store, "CACHE", tmp_path / "cache" / "speed.jsonl")
    monkeypatch.setattr(speed_store, "RESULTS", tmp_path / "results")

    def save(name, result):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))

    monkeypatch.setattr(speed_store, "save", save)
    return tmp_path


def values(rows):
    return {r["job"]: r["value"] for r in rows}


def test_the_last_rows_of_a_job_count_but_a_quick_look_never_replaces_a_measurement(disk):
    for rows in (made("a", 1.0, quick=True), made("a", 2.0), made("a", 3.0, quick=True), made("b", 4.0)):
        speed_store.keep(rows)
    assert values(speed_store.save_table(["b", "a"])) == {"b": 4.0, "a": 2.0}
    speed_store.keep(made("a", 5.0))
    assert values(speed_store.save_table(["b", "a"])) == {"b": 4.0, "a": 5.0}


def test_rows_that_cannot_be_made_here_stay_in_the_table(disk):
    for job in ("peer", "ours", "slow"):
        speed_store.keep(made(job, 1.0))
    speed_store.save_table(["peer", "ours", "slow"])
    speed_store.CACHE.unlink()
    speed_store.keep(made("ours", 2.0))
    speed_store.keep(made("slow", 9.0, quick=True))
    assert values(speed_store.save_table(["ours", "peer", "slow"])) == {"ours": 2.0, "peer": 1.0, "slow": 1.0}
    assert values(speed_store.table()) == {"ours": 2.0, "peer": 1.0, "slow": 1.0}
    assert values(speed_store.save_table(["ours"])) == {"ours": 2.0}


def test_promises_come_first_and_what_has_no_goal_stands_apart(disk):
    for rows in (made("a", 1.0, goal=None), made("b", 1.0, goal=0)):
        speed_store.keep(rows)
    assert [r["job"] for r in speed_store.save_table(["a", "b"])] == ["b", "a"]
    saved = json.loads((disk / "results" / "speed.json").read_text())
    assert values(saved["rows"]) == {"b": 1.0} and values(saved["beside"]) == {"a": 1.0}


def test_a_line_cut_short_loses_that_job_alone(disk):
    speed_store.keep(made("a", 1.0))
    speed_store.keep(made("b", 1.0))
    speed_store.CACHE.write_text(speed_store.CACHE.read_text()[:-9])
    assert speed_store.measured().keys() == {"a"}
    speed_store.keep(made("c", 1.0))
    assert speed_store.measured().keys() == {"a", "c"}


def test_a_peer_that_is_not_here_says_how_to_get_it():
    with pytest.raises(Missing, match=r"no_such_peer is not installed: pip install 'steadygrad\[bench\]'"):
        installed("no_such_peer")


def test_the_part_before_the_slash_is_all_sizes():
    assert speed.chosen(["clip", "wandb/25M"]) == ["clip/1M", "clip/25M", "clip/117M", "wandb/25M"]
    assert speed.chosen([]) == list(speed.JOBS)
    with pytest.raises(SystemExit, match="no job is called clips; there are"):
        speed.chosen(["clips"])


def test_what_is_promised_stands_in_the_saved_table():
    saved = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    rows = [*saved["rows"], *saved["beside"]]
    assert len({r["name"] for r in rows}) == len(rows)
    assert all(r["goal"] is not None and r["hardware"] for r in saved["rows"])
    promised = {r["job"] for r in saved["rows"]}
    assert promised == {job for job in speed.JOBS if job.split("/")[0] not in speed.BESIDE} - set(
        speed.not_measured(rows)
    )


def test_a_promise_that_was_not_measured_is_named():
    rows = [{"job": job} for job in speed.JOBS if job not in ("million", "steps/char-RNN")]
    assert speed.not_measured(rows) == ["million"]


def test_page_of_performance_is_fresh(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import generate_performance

    page = (ROOT / "docs" / "performance.md").read_text()
    assert page == generate_performance.text(), "run: python docs/generate_performance.py"
