"""The machinery of the sinks, on objects of the user's own."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from steadygrad.records import Action, Finding, StepStats
from steadygrad.sinks import feeder
from steadygrad.sinks.fan import Sinks


def a_step(step, optimizer=0, **more):
    norms = np.array([3.0, 4.0], dtype=np.float32)
    values = {"loss": 0.5, "grad_norm": 5.0, "clipped_grad_norm": 5.0, "lr": 0.1} | more
    return StepStats(step=step, optimizer=optimizer, grad_norms=norms, **values)


class Own:
    """Keeps all that it is given."""

    def __init__(self):
        self.steps, self.scalars, self.events, self.reports, self.closed, self.flushed = [], [], [], [], 0, 0
        self.threads = set()

    def write(self, scalars, step):
        self.threads.add(threading.get_ident())
        self.steps.append(step)
        self.scalars.append(scalars)

    def event(self, event):
        self.events.append(event)

    def artifact(self, path):
        assert not self.closed
        self.reports.append(path)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed += 1


def feed(sinks, steps=20):
    sinks.begin()
    for i in range(steps):
        sinks.step(a_step(i), 0, 0)


def test_all_arrives_in_order_and_off_the_training_thread(recorded):
    notes, own = [], Own()
    sinks = Sinks([own], recorded, notes.append)
    feed(sinks)
    sinks.close()
    sinks.close()
    assert own.steps == list(range(20))
    assert own.scalars[3]["steadygrad/grad_norm"] == 5.0
    assert own.reports == [recorded / "report.html"] and own.reports[0].read_text().startswith("<!")
    assert own.closed == 1 and own.flushed >= 2 and threading.get_ident() not in own.threads
    assert notes == []


def test_the_cadence_that_a_sink_asks_for(recorded):
    own = Own()
    own.every = 10
    sinks = Sinks([own], recorded, print)
    feed(sinks, 45)
    sinks.close()
    assert own.steps == [0, 10, 20, 30, 40]


def test_the_first_of_the_steps_that_went_wrong_is_given_whatever_the_cadence(recorded):
    own = Own()
    own.every = 10
    sinks = Sinks([own], recorded, print)
    sinks.begin()
    for i in range(20):
        wrong = {13: {"applied": False}, 14: {"applied": False}, 17: {"grad_norm": float("nan")}}
        sinks.step(a_step(i, **wrong.get(i, {})), 0, 0)
    sinks.close()
    assert own.steps == [0, 10, 13, 17]


def test_incidents(recorded):
    own = Own()
    sinks = Sinks([own], recorded, print)
    sinks.begin()
    sinks.finding(Finding("G103", "loss_spike", 3, "loss", "the loss jumped"))
    sinks.finding(Finding("G999", "something", 4, "model", "nothing to worry about", severity="info"))
    sinks.action(Action(5, "rollback", "three steps in a row", "G100", details={"to_step": 2}))
    sinks.close()
    assert [e.line for e in own.events] == [
        "step 3: loss_spike (warning, loss): the loss jumped",
        "step 5: rollback (action): three steps in a row",
    ]


def test_skips_of_the_scaler_are_counted_also_on_steps_that_are_not_given(recorded):
    own = Own()
    own.every = 10
    sinks = Sinks([own], recorded, print)
    sinks.begin()
    for i in range(11):
        sinks.step(a_step(i, amp_skips=1, loss_scale=2.0), 0, 0)
    sinks.close()
    assert own.scalars[-1]["steadygrad/amp_skips"] == 11


@pytest.mark.parametrize("method", ["write", "event", "flush", "artifact", "close"])
def test_a_sink_that_raises_is_dropped_with_one_note_and_the_others_go_on(method, recorded):
    def broken(*given):
        raise OSError("no\nmore space")

    notes, bad, good = [], Own(), Own()
    setattr(bad, method, broken)
    sinks = Sinks([bad, good], recorded, notes.append)
    feed(sinks)
    sinks.finding(Finding("G103", "loss_spike", 3, "loss", "the loss jumped"))
    sinks.close()
    assert notes == ["the sink Own failed (OSError: no); the run goes on without it"]
    assert good.steps == list(range(20)) and len(good.reports) == 1
    assert bad.closed == (method != "close"), "what it holds is let go"


def test_a_dropped_sink_is_told_of_while_the_run_goes(recorded):
    class Bad(Own):
        def write(self, scalars, step):
            raise OSError("no")

    notes = []
    sinks = Sinks([Bad()], recorded, notes.append)
    feed(sinks)
    assert sinks._feeders[0].drain() and notes == []
    feed(sinks)
    assert len(notes) == 1


def test_a_sink_that_blocks_holds_up_nothing_and_what_waits_is_bounded(recorded, monkeypatch):
    class Blocked(Own):
        def write(self, scalars, step):
            assert go_on.wait(60)
            super().write(scalars, step)

    monkeypatch.setattr(feeder, "MAX_STEPS", 50)
    notes, go_on, own = [], threading.Event(), Blocked()
    sinks = Sinks([own], recorded, notes.append)
    feed(sinks, 10_000)
    (fed,) = sinks._feeders
    assert len(fed._steps) <= 50 and fed.left_out > 0
    assert fed._stride >= 128, "thinned alike over its whole length"
    sinks.close(seconds=0.0)
    assert notes == [
        "the sink Blocked has not taken everything within 0 seconds and is not waited for; the run goes on without it"
    ]
    go_on.set()
    fed.wait()
    distances = {b - a for a, b in zip(own.steps[-20:], own.steps[-19:], strict=False)}
    assert len(distances) <= 2, "what is left lies on a grid"
    assert own.steps[-1] > 9_000 and own.closed == 1


def test_a_sink_that_cannot_be_opened_costs_a_note(recorded, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    notes = []
    sinks = Sinks(["tensorboard"], recorded, notes.append)
    feed(sinks)
    sinks.close()
    assert len(notes) == 1 and notes[0].startswith(
        "the sink tensorboard cannot be used (ModuleNotFoundError: "
    )


def test_without_a_trace_there_is_no_report_but_all_else(tmp_path):
    notes, own = [], Own()
    sinks = Sinks([own], tmp_path, notes.append)
    feed(sinks)
    sinks.close()
    assert own.steps == list(range(20)) and own.reports == [] and own.closed == 1
    assert len(notes) == 1 and "report" in notes[0]


def test_only_the_first_rank_writes(recorded, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    own = Own()
    sinks = Sinks([own], recorded, print)
    feed(sinks)
    sinks.close()
    assert own.steps == [] and own.closed == 0
    monkeypatch.setenv("RANK", "0")
    sinks = Sinks([own], recorded, print)
    feed(sinks)
    sinks.close()
    assert len(own.steps) == 20


FORKED = """
import os, sys
from pathlib import Path
from tests.sinks.test_fan import Own, Sinks, a_step, feed

class ToFile(Own):
    def write(self, scalars, step):
        os.write(1, f"{os.getpid()} {step}\\n".encode())

sinks = Sinks([ToFile()], Path(sys.argv[1]), print)
feed(sinks, 3)
assert sinks._feeders[0].drain()
child = os.fork()
if child == 0:
    feed(sinks, 5)
    waiting = len(sinks._feeders[0]._steps)
    sinks.close()
    os._exit(waiting + 10 * Path(sys.argv[1], "report.html").exists())
status = os.waitpid(child, 0)[1]
sinks.close()
print("parent", os.getpid(), status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_nothing_in_a_forked_child(recorded, tmp_path):
    run = shutil.copytree(recorded, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = subprocess.run(
        [sys.executable, "-c", FORKED, str(run)], env=env, capture_output=True, text=True, check=True
    )
    *written, last = out.stdout.splitlines()
    _, parent, status = last.split()
    assert status == "0" and written == [f"{parent} {i}" for i in range(3)]
