"""The page of a prescription."""

import math
import re
from html.parser import HTMLParser

from steadygrad.report.prescription_page import curves, render
from tests.report.repairs import DIFF, repaired, report

VOID = {"meta", "link", "line", "path"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs): ...

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def page(**more):
    twin = report("nonfinite", (2.0, 30.0, 1e9, math.nan))
    return render(
        repaired(**more),
        twin,
        report(losses=(2.0, 1.5, 1.31, 1.3)),
        DIFF,
        "steadygrad run --with p.json train.py",
    )


def test_the_page_is_whole_and_asks_for_nothing():
    html = page()
    parser = Balanced()
    parser.feed(html)
    assert (parser.wrong, parser.open) == ([], [])
    assert "<script" not in html and not re.findall(r"(?:src|href)=\"(?!data:|#)", html)
    assert "default-src 'none'" in html


def test_it_tells_cause_change_proof_seeds_and_what_was_tried():
    html = page()
    for words in (
        "clip at 1.1 cures train.py",
        "recurrent growth",
        "bit for bit",
        "3 of 3",
        "lr / 10",
        "slow one",
    ):
        assert words in html, words
    assert "&quot;1 &lt; 2&quot;" in html and "steadygrad run --with p.json train.py" in html


def test_strings_of_others_are_escaped():
    html = page(
        script="<b>x</b>",
        advice=["<i>"],
        notes=["<u>"],
        patch_note="<s>",
        patch_state="differs",
        remedies=["<q>"],
    )
    assert not re.search(r"<(i|u|s|q)>", html) and "<b>x" not in html


def test_the_curve_that_is_lost_says_where_and_the_other_is_drawn_whole():
    svg = curves(report("nonfinite", (2.0, 30.0, 1e9, math.nan)), report(losses=(2.0, 1.5, 1.31, 1.3)))
    assert "lost at step 3" in svg and "nan" not in re.sub(r'aria-label="[^"]*"', "", svg)
    fixed = re.search(r'class="fixed" d="([^"]*)"', svg)[1]
    assert fixed.count("L") == 3 and fixed.count("M") == 1
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+) (-?[\d.]+)", svg)]
    assert all(0 <= y <= 300 for y in heights)


def test_a_step_that_was_skipped_is_a_gap_and_no_loss_of_the_run():
    skipped = (2.0, math.nan, 1.4, 1.31)
    svg = curves(report("nonfinite", (2.0, math.nan, math.nan, math.nan)), report(losses=skipped))
    assert svg.count("lost at step") == 1
    assert re.search(r'class="fixed" d="([^"]*)"', svg)[1].count("M") == 2


def test_odd_courses_are_drawn():
    for losses in ((), (1.0,), (0.0, 0.0), (-3.0, -5.0), (math.nan, math.nan), (1e-30, 1e30)):
        svg = curves(
            report("stuck", losses or (1.0,), **({"steps": 1} if not losses else {})),
            report(losses=losses or (1.0,)),
        )
        assert "<svg" in svg and "inf" not in svg.split(">", 1)[1]
