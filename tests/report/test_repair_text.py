"""What ``steadygrad repair`` says."""

import io

from steadygrad.report import repair_text
from tests.report.repairs import DIFF, repaired, run


def said(lines):
    stream = io.StringIO()
    repair_text.say(lines, stream)
    return stream.getvalue()


def test_how_the_untouched_run_failed_and_why():
    assert said(repair_text.untouched("parameters are NaN", 37)) == (
        "1/4  the untouched run   failed: parameters are NaN; trouble from step 37 on\n"
    )
    causes = [*repaired()["causes"], {**repaired()["causes"][0], "cause": "dead_units", "probability": 0.02}]
    first, message = said(repair_text.why(causes, None)).splitlines()
    assert first == "2/4  why                 recurrent growth (0.94), lr too large (0.31)"
    assert message.strip() == "the gradient grows x1.9 a time step"
    assert "no cause is known" in said(repair_text.why([], None))


def test_a_healthy_run_is_one_line():
    found = repaired(twin=run(0.04, loss_first=2.3), arms=[])
    assert said(repair_text.healthy(found)) == (
        "The untouched run trains (loss 2.3 -> 0.04, no incident that did not recover). Nothing to repair.\n"
    )
    text = said(repair_text.healthy({**found, "arms": repaired()["arms"][:1]}))
    assert "this was tried: lr / 10. None did clearly better." in text
    short = repaired(arms=[], twin=run(2.0, kind="unknown", verdict="12 steps are too few to judge"))
    text = said(repair_text.healthy(short))
    assert "trains" not in text and "12 steps are too few to judge" in text


def test_the_seeds_are_told_for_both():
    text = said(repair_text.seeds(repaired()))
    assert text == "4/4  whole run, 3 seeds  twin 0 of 3 | clip at 1.1: 3 of 3 (1.31 1.32 1.33)\n"
    assert "ended at step 4,000" in said(repair_text.seeds(repaired(cut_at=4000)))


def test_a_patch_is_shown_with_what_its_own_run_came_to():
    text = said(repair_text.cure(repaired(), DIFF))
    assert DIFF in text and "bit for bit over 300 steps" in text
    text = said(repair_text.cure(repaired(patch_state="as well"), DIFF))
    assert DIFF in text and "trains as well" in text and "proven" not in text


def test_a_patch_whose_run_differs_is_only_advice():
    found = repaired(patch_state="differs", patch_note="it ends at 7", patch=None)
    text = said(repair_text.cure(found, DIFF))
    assert DIFF not in text and "not offered: it ends at 7" in text
    assert "do   clip the gradient" in text and "+        clip(model" in text


def test_without_a_patch_the_advice_is_printed_with_its_lines():
    found = repaired(
        patch_state="none", patch_note="no place. To be changed by hand:\n  before step():\n      clip()"
    )
    lines = said(repair_text.cure(found, "")).splitlines()
    assert "do   clip the gradient to norm 1.1" in lines and "           clip()" in lines
    text = said(repair_text.next_steps({**found, "patch": None}, "", "steadygrad run --with p.json train.py"))
    assert "next: steadygrad run --with" in text and "fix.patch" not in text


def test_what_was_saved_and_what_to_type():
    text = said(
        repair_text.next_steps(
            repaired(), "git apply runs/train-8/fix.patch", "steadygrad run --with p train.py"
        )
    )
    assert text.splitlines() == [
        "saved runs/train-8/prescription.json, fix.patch and prescription.html",
        "next: git apply runs/train-8/fix.patch",
        "  or: steadygrad run --with p train.py",
    ]


def test_no_cure_is_said_plainly():
    text = said(repair_text.not_cured(repaired(cured=False, remedies=[])))
    assert "No cure was found: none of 2 remedies" in text and "1 more came to no end" in text
    assert "steadygrad explain recurrent_growth" in text
    assert "no remedy could be tried" in said(repair_text.not_cured(repaired(arms=[])))


def test_no_control_characters_reach_the_terminal():
    found = repaired(remedies=["a\x1b[31mb"], notes=["x\x1b]0;title\x07y"], advice=["a\x1b[2Jb"])
    text = said(repair_text.seeds(found)) + said(repair_text.notes(found["notes"]))
    text += said(repair_text.cure(found, "--- a\x1b[2J\n+\tx\x1b\n"))
    assert "\x1b" not in text and "\x07" not in text and "+\tx" in text
