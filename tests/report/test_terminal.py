"""What is said while a run goes and at its end."""

import dataclasses
import io
import json
import math
import os
import pty
import sys
import textwrap

import numpy as np
import pytest

from steadygrad.records import Action, Cause, Finding, RunSummary, StepStats
from steadygrad.report import machine, terminal
from steadygrad.report.closing import print_no_steps, print_summary
from steadygrad.report.terminal import ChildTerminal, Terminal, shown_path, step_line
from tests.commands import environment
from tests.report.terminal_emulator import screen

STATS = StepStats(
    step=1204,
    optimizer=0,
    loss=2.3104,
    grad_norm=0.84,
    clipped_grad_norm=0.84,
    grad_norms=np.zeros(1, np.float32),
    lr=0.1,
)
EXPLODING = Finding(
    "G101", "exploding_gradient", 37, "rnn.weight_hh_l0", "gradient norm 0.7 -> 6.5e8", {}, "alarm"
)
ROLLBACK = Action(40, "rollback", "gradient norm 0.7 -> 6.5e8: back 10 steps, clipped at 1.1", "G101")
GROWTH = Cause(
    "recurrent_growth", 0.94, "rnn.weight_hh_l0", ("G101",), ("G102",), "clip", "it grows x1.9 a time step"
)
SUMMARY = RunSummary("/home/a/runs/train-7", 2500, 31.2, 4.63, 1.31, 1.29, 0, 0, False)


def last_words(summary: RunSummary = SUMMARY, **options) -> str:
    out = io.StringIO()
    print_summary(summary, **{"shown": "train.py", "cwd": "/home/a", "stream": out, **options})
    return out.getvalue()


# ---------------------------------------------------------------------- while it goes
def test_live_line_says_all_that_matters():
    assert step_line(STATS, "steady", 0, 1, 212.4) == (
        "step 1,204  loss 2.31  grad norm 0.84  steady  1 incident, 0 skipped  212 steps/s"
    )
    healthy = "step 1,204  loss 2.31  grad norm 0.84  steady  0 skipped  212 steps/s"
    assert step_line(STATS, "steady", 0, 0, 212.4) == healthy and len(healthy) < 78  # fits beside its indent
    silent = dataclasses.replace(STATS, loss=None, grad_norm=math.inf)
    assert step_line(silent, "exploding gradient", 3, 2, math.nan) == (
        "step 1,204  grad norm inf  exploding gradient  2 incidents, 3 skipped"
    )
    assert step_line(STATS, "steady", 0, 0, 0.31).endswith("0.31 steps/s")


def test_without_a_terminal_plain_lines_come_seldom(capsys):
    voice = Terminal("train.py", cwd="/home/a")
    voice.open()
    voice.started("/home/a/runs/train-7")
    for _ in range(1000):
        voice.step(STATS, 0, 0)
    voice.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "steadygrad  watching train.py, run runs/train-7",
        "steadygrad  step 1,204  loss 2.31  grad norm 0.84  steady  0 skipped",
    ]


def test_findings_and_actions_are_told_once_and_not_for_ever(capsys):
    voice = Terminal("train.py", cwd="/")
    for _ in range(3):
        voice.finding(EXPLODING)
        voice.action(ROLLBACK)
    voice.finding(dataclasses.replace(EXPLODING, severity="info", where="elsewhere"))
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "steadygrad  step 37  gradient norm 0.7 -> 6.5e8 (rnn.weight_hh_l0)",
        "steadygrad  step 40  rolled back: gradient norm 0.7 -> 6.5e8: back 10 steps, clipped at 1.1",
    ]
    for i in range(100):
        voice.finding(dataclasses.replace(EXPLODING, where=f"layer{i}"))
    err = capsys.readouterr().err.splitlines()
    assert len(err) == terminal.MAX_SAID - 1
    assert err[-1] == "steadygrad  more is only recorded from here on"


def test_what_was_acted_on_is_told_once(capsys):
    voice = Terminal("train.py", cwd="/")
    voice.action(Action(37, "skip", "the gradient is not finite", "G100"))
    voice.finding(EXPLODING)
    assert capsys.readouterr().err == "steadygrad  step 37  skipped: the gradient is not finite\n"


def test_trouble_stays_on_the_live_line_for_a_while():
    voice = Terminal("train.py", cwd="/", quiet=True)
    voice.finding(EXPLODING)
    assert voice._health()[0] == "exploding gradient"
    for _ in range(terminal.TROUBLE_STEPS):
        voice.step(STATS, 0, 0)
    assert voice._health()[0] == "steady"


def test_quiet_says_notes_only(capsys):
    voice = Terminal("train.py", cwd="/", quiet=True)
    voice.open()
    voice.started("/runs/a")
    voice.step(STATS, 0, 0)
    voice.finding(EXPLODING)
    voice.action(ROLLBACK)
    voice.note("steadygrad had an error of its own")
    voice.close()
    assert capsys.readouterr().err == "steadygrad  had an error of its own\n"


@pytest.mark.parametrize(("rank", "lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_only_one_rank_tells_of_progress(rank, lines, capsys):
    first: list[int] = []
    voice = ChildTerminal(lambda: first.append(1), cwd="/", quiet=False, rank=rank)
    voice.started("/runs/a")
    voice.step(STATS, 0, 0)
    voice.step(STATS, 0, 0)
    assert first == [1]
    assert len(capsys.readouterr().err.splitlines()) == lines
    voice.finding(EXPLODING)
    assert capsys.readouterr().err.startswith("steadygrad rank 1  step 37" if rank == "1" else "steadygrad")


def test_nobody_listening_is_no_error(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    for stream in (None, Gone()):
        monkeypatch.setattr(sys, "stderr", stream)
        voice = Terminal("train.py", cwd="/")
        voice.open()
        voice.started("/runs/a")
        voice.step(STATS, 0, 0)
        voice.note("x")
        voice.close()


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202ename\nnext"


def test_hostile_names_reach_no_terminal(capsys):
    voice = Terminal(HOSTILE, cwd="/")
    voice.started(f"/{HOSTILE}")
    voice.finding(Finding("G101", HOSTILE, 1, HOSTILE, HOSTILE, {}, "alarm"))
    voice.action(Action(1, "skip", HOSTILE, "G101"))
    voice.note(HOSTILE)
    voice.step(STATS, 0, 0)
    cause = Cause(HOSTILE, 0.5, HOSTILE, ("G101",), (), HOSTILE, HOSTILE)
    summary = dataclasses.replace(
        SUMMARY,
        run_dir=f"/{HOSTILE}",
        findings=(Finding("G101", HOSTILE, 1, HOSTILE, HOSTILE, {}, "alarm"),),
        actions=(Action(1, "skip", HOSTILE, "G101"),),
        causes=(cause,),
        notes=(HOSTILE,),
    )
    text = last_words(summary, shown=HOSTILE) + capsys.readouterr().err
    assert not {c for c in text if c != "\n" and not c.isprintable()}


# ---------------------------------------------------------------------- at the end
def test_healthy_run_gets_one_line():
    assert last_words() == (
        "train.py ended: 2,500 steps, loss 4.63 -> 1.31, 31 s, steady throughout; recorded in runs/train-7\n"
    )
    assert last_words(quiet=True) == ""


def test_incident_says_what_why_and_what_was_done():
    calm = Finding("G102", "calm_loss", 36, "loss", "the loss was normal before", {}, "info")
    deep = Finding("G201", "exploding_profile", 37, "rnn", "gradient grows x1.9 per layer", {}, "info")
    cause = dataclasses.replace(GROWTH, supporting=("G101", "G201"))
    summary = dataclasses.replace(
        SUMMARY, findings=(calm, EXPLODING, deep), actions=(ROLLBACK,), causes=(cause,), notes=("a note",)
    )
    assert last_words(summary) == textwrap.dedent(
        """\
        train.py ended: 2,500 steps, loss 4.63 -> 1.31, 31 s

        1 incident
          step 37  gradient norm 0.7 -> 6.5e8
                   most likely recurrent growth (0.94): it grows x1.9 a time step
                   for      gradient grows x1.9 per layer
                   against  the loss was normal before
                   done     rolled back: back 10 steps, clipped at 1.1
        note: a note
        next: steadygrad diagnose runs/train-7   says why, with all that speaks for and against it
        next: steadygrad report runs/train-7   opens the pictures
        """
    )


def test_skips_are_counted_together():
    skips = tuple(Action(s, "skip", "the gradient is not finite", "G100") for s in (5, 6, 7))
    text = last_words(dataclasses.replace(SUMMARY, actions=skips))
    assert "skipped 3 steps (5 to 7)" in text and text.count("not finite") == 1


def test_what_was_only_watched_says_so():
    text = last_words(dataclasses.replace(SUMMARY, findings=(EXPLODING,)), guard="warn")
    assert "done     nothing: --guard warn" in text


def test_warnings_that_belong_to_no_incident_are_listed_once_each():
    stall = Finding("L204", "stall", 900, "loss", "the loss has not moved in 500 steps")
    text = last_words(dataclasses.replace(SUMMARY, findings=(stall, dataclasses.replace(stall, step=1000))))
    assert "1 warning\n  step 900  the loss has not moved in 500 steps" in text


def test_many_incidents_are_cut_and_counted():
    findings = tuple(dataclasses.replace(EXPLODING, step=1000 * i) for i in range(12))
    text = last_words(dataclasses.replace(SUMMARY, findings=findings))
    assert "12 incidents" in text and "and 7 more incidents: see the report" in text


def test_path_with_blanks_can_be_typed():
    summary = dataclasses.replace(SUMMARY, run_dir="/home/a/my runs/x-1", findings=(EXPLODING,))
    assert "next: steadygrad report 'my runs/x-1'" in last_words(summary)
    assert shown_path("/elsewhere/x", "/home/a") == "/elsewhere/x"


def test_no_steps_gives_reasons_unless_the_script_failed():
    out = io.StringIO()
    print_no_steps("train.py", "ended", failed=False, launched=False, stream=out)
    assert "no optimizer step was seen. Likely reasons:\n  (a) " in out.getvalue()
    assert "steadygrad run -- " in out.getvalue()
    out = io.StringIO()
    print_no_steps("train.py", "failed (ValueError)", failed=True, launched=False, stream=out)
    assert out.getvalue() == "train.py failed (ValueError), and no optimizer step was seen.\n"


def test_json_has_the_keys_of_the_contract_and_no_number_that_json_lacks():
    summary = dataclasses.replace(
        SUMMARY,
        loss_last=math.nan,
        loss_best=-math.inf,
        findings=(dataclasses.replace(EXPLODING, evidence={"norm": math.inf}),),
        actions=(ROLLBACK,),
        causes=(GROWTH,),
    )
    value = json.loads(
        machine.dumps(machine.summary_json(summary, 86, "train.py", ["--lr", "3"])),
        parse_constant=pytest.fail,
    )
    assert list(value)[:9] == [
        "schema", "run_dir", "script", "argv", "exit_code", "steps", "stopped_by_guard", "seconds", "loss"
    ]  # fmt: skip
    assert value["schema"] == 1 and value["exit_code"] == 86 and value["forecast"] is None
    assert value["loss"] == {"first": 4.63, "last": "NaN", "best": "-Infinity"}
    assert value["findings"][0]["evidence"] == {"norm": "Infinity"}
    assert {"code", "rule", "step", "where", "message", "evidence"} <= value["findings"][0].keys()
    assert {"step", "action", "reason", "code"} <= value["actions"][0].keys()
    assert {"cause", "probability", "where", "for", "against", "advice"} <= value["causes"][0].keys()


# ---------------------------------------------------------------------- in a terminal
SCRIPT = """
import dataclasses, sys
from steadygrad.report import terminal
from tests.report.test_terminal import EXPLODING, STATS

terminal.LIVE_SECONDS = 0.0  # draw at every step
voice = terminal.Terminal("train.py", cwd="/home/a")
voice.open()
voice.started("/home/a/runs/train-7")
assert sys.stdout.isatty() and sys.stdout.fileno() == 1
for step in range(30):
    voice.step(dataclasses.replace(STATS, step=step), 0, 0)
    if step % 10 == 0:
        print("epoch", step // 10)
    sys.stdout.write(f"\\r{step + 1:3d}/30 |" + "#" * step if step < 20 else "")
    sys.stdout.flush()
    sys.stderr.write("." if step > 25 else "")
    sys.stderr.flush()
    if step == 15:
        voice.finding(EXPLODING)
    if step == 19:
        print(" done")
print()
print(repr(input("name? ")))
voice.close()
assert not hasattr(sys.stdout, "_steadygrad")
"""


def in_a_terminal(command: list[str], typed: str = "") -> str:
    """Everything that a command writes to its terminal, with 80 columns."""
    child, master = pty.fork()
    if child == 0:
        os.execve(command[0], command, environment(TERM="xterm"))
    os.write(master, typed.encode())
    output = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        output += piece
    os.close(master)
    assert os.waitpid(child, 0)[1] == 0, output.decode()
    return output.decode().replace("\r\n", "\n")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # 3.12 warns of fork beside threads
def test_live_line_in_a_real_terminal():
    text = in_a_terminal([sys.executable, "-c", SCRIPT], typed="Ann\n")
    assert "step 5  loss 2.31" not in text  # the progress bar was on the row
    assert "step 25  loss 2.31" in text
    rows = [row for row in screen(text) if row]
    assert rows[0] in (
        "Ann",
        "steadygrad  watching train.py, run runs/train-7",
    )  # the terminal echoes at once
    said = "steadygrad  step 37  gradient norm 0.7 -> 6.5e8 (rnn.weight_hh_l0)"
    shown = [row for row in rows if row != "Ann"]
    assert shown[1:] == [
        "epoch 0",
        " 10/30 |#########epoch 1",
        said,
        " 20/30 |################### done",
        "epoch 2",
        "....",
        "name? 'Ann'",
    ]
