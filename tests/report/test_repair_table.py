"""The table of arms, live and final."""

import io

from steadygrad.report.repair_table import ArmsScreen, merged, outcome, table
from tests.report.repairs import arm, repaired, run


def test_a_row_for_each_remedy_with_brief_and_whole_runs():
    found = repaired()
    lines = [line for _, line in table(found["twin"], found["arms"], "clip at 1.1")]
    assert [line.split() for line in lines] == [
        ["arm", "loss", "at", "120", "loss", "at", "the", "end"],
        ["nothing", "changed", "(twin)", "NaN", "at", "37"],
        ["clip", "at", "1.1", "1.92", "1.31", "<-"],
        ["slow", "one", "no", "end", "it", "was", "still", "going", "after", "90", "s"],
        ["lr", "/", "10", "2.48"],
    ]


def test_no_column_for_brief_runs_that_were_not_made_and_no_mark_without_a_cure():
    lines = [line for _, line in table(run("NaN"), [arm("lr / 10", "NaN")], "")]
    assert "loss at the end" in lines[0] and "loss at 120" not in lines[0]
    assert not any("<-" in line for line in lines)


def test_a_long_list_is_cut_and_says_so():
    arms = [arm(f"lr / {k}", 1.0 + k) for k in range(30)]
    lines = [line for _, line in table(run("NaN"), arms, "lr / 29")]
    assert len(lines) == 17 and "lr / 29" in lines[2] and "and 16 more" in lines[-1]


def test_the_best_whole_run_is_first():
    rows = merged([arm("a", 0.1, whole=False), arm("b", 2.0), arm("c", 1.0), arm("d", "NaN")])
    assert [row["name"] for row in rows] == ["c", "b", "d", "a"]


def test_an_exploded_run_shows_how_far_it_came():
    assert outcome(run(7.5e12, survived=False, kind="exploded")) == "7.5e12"


def test_a_script_that_ends_itself_at_the_first_nan_is_lost_although_its_last_losses_are_fine():
    assert outcome(run(0.06, survived=False, kind="nonfinite", failed_at=37)) == "NaN at 37"


def test_a_run_without_a_report_says_so():
    assert outcome(run(None)) == "no end"


def test_without_a_terminal_each_end_is_a_line_on_the_other_stream():
    out, plain = io.StringIO(), io.StringIO()
    screen = ArmsScreen(out, plain)
    first = screen.begin("3/4  trials", ["clip at 1", "lr / 10"])
    screen.step(first, 5, 1.0)
    screen.end(first + 1, "NaN at 4 after 80 steps")
    screen.close()
    assert out.getvalue() == "" and plain.getvalue() == "3/4  trials: lr / 10: NaN at 4 after 80 steps\n"


def test_the_live_table_shows_what_runs_and_fits_the_terminal():
    screen = ArmsScreen(io.StringIO(), io.StringIO())
    first = screen.begin("3/4  trials", [f"arm {k}" for k in range(20)])
    for k in range(15):
        screen.end(first + k, "1.5 after 80 steps", good=True)
    screen.step(first + 16, 1204, float("nan"))
    lines = [line for _, line in screen.lines(10)]
    assert len(lines) == 10 and "15 of 20 runs ended" in lines[0]
    assert any("arm 16  step 1,204   loss NaN" in line for line in lines)
    assert all(any(line.split()[:2] == ["arm", str(k)] for line in lines) for k in range(15, 20))
    assert "12 more" in lines[-1]


def test_rounds_of_one_stage_add_up_and_another_stage_begins_anew():
    screen = ArmsScreen(io.StringIO(), io.StringIO())
    assert (screen.begin("3/4  trials", ["a", "b"]), screen.begin("3/4  trials", ["c"])) == (0, 2)
    assert screen.begin("4/4  other seeds", ["a"]) == 0
    assert "0 of 1 runs ended" in screen.lines(10)[0][1]
