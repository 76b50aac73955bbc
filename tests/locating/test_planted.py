"""The corpus of planted faults: module, operation, line, kind and sample of every one."""

from __future__ import annotations

import pytest

from benchmarks.planted import judged, planted

SLOW = {"sum_for_mean", "missing_unscale"}  # sixty batches before they break


@pytest.mark.filterwarnings("ignore:std\\(\\)")
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.name in SLOW else ()) for c in planted.cases],
    ids=lambda c: c.name,
)
def test_named_right(case):
    verdict = judged(case)
    assert (verdict.module, verdict.op, verdict.line, verdict.kind, verdict.sample) == (True,) * 5, verdict


def test_the_twelve_are_there():
    assert sum(case.b8 for case in planted.cases) == 12
    assert len(planted.cases) >= 26
