"""What several processes came to together."""

import math

from steadygrad.integrations.merged import summarize
from steadygrad.records import Action, Cause, Finding
from steadygrad.trace.rundir import trace_path
from steadygrad.trace.writer import TraceWriter

FOUND = Finding("G101", "exploding_gradient", 3, "a", "grows", {"ratio": math.inf}, "alarm")
CAUSE = Cause("bad_batch", 0.7, "a", ("G101",), (), "look at it")


def write(run_dir, rank: int, losses: list[float], *, ended: bool = True, found: bool = True) -> None:
    writer = TraceWriter(trace_path(run_dir, rank), {"rank": rank})
    for step, loss in enumerate(losses):
        writer.scalars(0, step, {"loss": loss, "applied": float(math.isfinite(loss))})
    if found:
        writer.finding(FOUND)
        writer.action(Action(3, "skip", "not finite", "G101"))
        writer.causes(3, [CAUSE])
    if ended:
        writer.meta_update({"amp_skips": 2, "notes": ["a note"]})
        writer.close()
    else:
        writer.flush()


def test_ranks_count_once(tmp_path):
    for rank in (0, 1):
        write(tmp_path, rank, [4.0 + rank, 3.0, 2.0, math.nan, 1.0])
    summary = summarize(tmp_path, 1.5)
    assert summary is not None
    assert (summary.steps, summary.skipped, summary.amp_skips, summary.seconds) == (5, 1, 2, 1.5)
    assert (summary.loss_first, summary.loss_best) == (4.0, 1.0)
    assert summary.findings == (FOUND,) and len(summary.actions) == 1 and summary.causes == (CAUSE,)
    assert not summary.stopped_by_guard and summary.notes == ("a note",)


def test_ranks_that_did_not_decide_alike_are_told(tmp_path):
    write(tmp_path, 0, [2.0, 1.0])
    write(tmp_path, 1, [2.0, 1.0], found=False)
    summary = summarize(tmp_path, 1.0)
    assert summary is not None
    assert summary.notes == ("a note", "rank 1 did not decide as rank 0 did: 0 actions, 1 there")


def test_process_that_was_killed_counts_with_what_it_had_written(tmp_path):
    write(tmp_path, 0, [2.0, 1.0], ended=False, found=False)
    summary = summarize(tmp_path, 1.0)
    assert summary is not None and summary.steps == 2 and summary.loss_last == 1.5


def test_no_trace_is_no_summary(tmp_path):
    assert summarize(tmp_path, 1.0) is None
    write(tmp_path, 0, [], found=False)
    assert summarize(tmp_path, 1.0) is None
