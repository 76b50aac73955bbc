"""What counts as cured, as left alone and as a patch that works."""

import subprocess
import sys

import pytest

from benchmarks.repair_cases import _no_verdict, _patched, case_scores, patch_scores
from benchmarks.repair_zoo import cost


def end(verdict, score=1.0):
    return {"verdict": verdict, "score": score, "steps": 10, "error": ""}


def row(family="case_1", fixed=False, plain="stuck", repaired=None, patched=None, healthy=False, **more):
    return {
        "family": family,
        "seed": 0,
        "fixed": fixed,
        "exit": 0,
        "healthy": healthy,
        "plain": end(plain),
        "repaired": repaired and end(repaired),
        "patched": patched,
        "claims_patch": patched is not None,
        "extra_steps": 20,
        "run_steps": 10,
        "seconds": 6.0,
        "run_seconds": 2.0,
        **more,
    }


def test_a_failing_script_is_cured_by_its_own_verdict_under_the_prescription():
    rows = [row(repaired="trained"), row(repaired="stuck"), row(), row(plain="trained", healthy=True)]
    scored = case_scores(rows)
    assert (scored["cured"].hits, scored["cured"].of) == (1, 3)
    assert (scored["trains_plainly"].hits, scored["trains_plainly"].of) == (1, 1)


def test_a_healthy_one_is_left_alone_if_nothing_is_prescribed():
    good = {"family": "case_2_healthy", "plain": "trained"}
    rows = [row(**good, healthy=True), row(**good, repaired="trained"), row(**good, healthy=True, exit=1)]
    rows += [row(fixed=True, plain="trained", healthy=True)]
    scored = case_scores(rows)
    assert (scored["healthy_left_alone"].hits, scored["healthy_left_alone"].of) == (1, 3)
    assert (scored["fixed_left_alone"].hits, scored["fixed_left_alone"].of) == (1, 1)


def test_a_patch_is_judged_where_it_is_claimed():
    rows = [
        row(repaired="trained", patched=end("trained", 1.0)),
        row(repaired="trained", patched=end("trained", 2.0)),
        row(repaired="trained", patched=_no_verdict("not applied", "")),
        row(repaired="trained"),
        row(),
    ]
    scored = patch_scores(rows)
    assert (scored["claimed"].hits, scored["claimed"].of) == (3, 4)
    assert (scored["trains"].hits, scored["trains"].of) == (2, 3)
    assert scored["same_score"].hits == 1 and len(scored["failed"]) == 1


def test_cost_counts_the_untouched_run_in_runs_alone():
    found = cost([row(), row(), row(extra_steps=100)])
    assert found["runs"]["median"] == 3.0 and found["extra_steps"]["median"] == 20
    assert found["extra_seconds"]["median"] == 4.0 and found["seconds_per_run_second"]["median"] == 3.0
    assert cost([])["runs"] is None


@pytest.fixture
def script(tmp_path):
    """A script whose verdict is in its second line, and a patch that makes it train."""
    lines = ["import json", "V = 'stuck'", "print(json.dumps({'verdict': V, 'score': 1, 'steps': 3}))"]
    (tmp_path / "s.py").write_text("\n".join(lines) + "\n")
    patched = "\n".join([lines[0], "V = 'trained'", lines[2]]) + "\n"
    (tmp_path / "new.py").write_text(patched)
    made = subprocess.run(["diff", "-u", "s.py", "new.py"], cwd=tmp_path, capture_output=True, text=True)
    diff = made.stdout.replace("--- s.py", "--- a/s.py").replace("+++ new.py", "+++ b/s.py")
    (tmp_path / "fix.patch").write_text(diff)
    return tmp_path


def test_the_patched_copy_is_run_and_the_script_stays(script):
    before = (script / "s.py").read_text()
    assert _patched(script, "fix.patch", ["s.py"])["verdict"] == "trained"
    assert (script / "s.py").read_text() == before


def test_the_patched_copy_has_no_steadygrad(script):
    assert subprocess.run([sys.executable, "-c", "import steadygrad"]).returncode == 0
    diff = (script / "fix.patch").read_text()
    (script / "fix.patch").write_text(diff.replace("+V = 'trained'", "+import steadygrad; V = 'trained'"))
    found = _patched(script, "fix.patch", ["s.py"])
    assert found["verdict"] == "stopped" and "without steadygrad" in found["error"]


def test_a_patch_that_does_not_fit_is_said(script):
    (script / "s.py").write_text("other = 1\n")
    assert _patched(script, "fix.patch", ["s.py"])["verdict"] == "not applied"
