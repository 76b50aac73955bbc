"""What is judged on the way from a script to its repair: its own errors, how far runs go, whether a patch is proven."""

import math

import pytest

from steadygrad.integrations.arms import ArmResult
from steadygrad.integrations.mend_script import (
    CUT_LEAST,
    NoSteps,
    ScriptFailed,
    ScriptRuns,
    Untouched,
    cut,
    equal_steps,
    own_error,
    source_path,
    trains_as_well,
)
from steadygrad.integrations.script import Target
from steadygrad.records import Finding
from steadygrad.repair.mend import Request
from tests.report.repairs import report

TRACEBACK = "Traceback (most recent call last):\n  File 'train.py', line 3\n"


class Nobody:
    """Listens to nothing."""

    def begin(self, requests): ...
    def step(self, index, step, loss): ...
    def end(self, index, answer): ...
    def told(self, what, value): ...


class Recorded:
    """A runner that gives what was recorded, in turn, and keeps what it was asked."""

    def __init__(self, *results):
        self.results, self.asked = list(results), []

    def run_all(self, requests, told=None, *, finished):
        self.asked += requests
        got = [self.results.pop(0) for _ in requests]
        for index, result in enumerate(got):
            finished(index, result)
        return got


def twin(kind="learned", stderr="", exit_code=1, **more):
    return ArmResult(report(kind, (2.0, 1.0), steps=400, **more), exit_code, 1.0, stderr_tail=stderr)


@pytest.mark.parametrize(
    "result, own",
    [
        (twin(stderr=TRACEBACK + "LookupError: no such key"), True),
        (twin(exit_code=0, stderr=TRACEBACK + "LookupError: printed and caught"), False),
        (twin(stderr="it did not learn"), False),  # an exit code that says how the training went
        (twin("nonfinite", TRACEBACK + "RuntimeError: assertion failed"), False),
        (twin("unknown", TRACEBACK + "ValueError: loss is NaN, stopping"), False),
        (ArmResult(None, 1, stderr_tail=TRACEBACK + "ImportError: x"), True),
    ],
)
def test_an_error_of_the_script_is_told_from_a_training_that_fails(result, own):
    assert own_error(result) is own


@pytest.mark.parametrize(
    "result, error",
    [
        (ArmResult(None, 0), NoSteps),
        (ArmResult(None, 3), ScriptFailed),
        (ArmResult(None, None, timed_out=True, note="still going"), Untouched),
        (twin("unknown", TRACEBACK + "KeyError: 1"), ScriptFailed),
    ],
)
def test_a_script_that_gives_nothing_to_repair(result, error):
    with pytest.raises(error):
        ScriptRuns(Recorded(result, result), Nobody())([Request(), Request(steps=30)])


def test_the_exit_code_is_the_scripts_own():
    assert ScriptFailed(ArmResult(None, 7)).exit_code == 7
    assert ScriptFailed(ArmResult(None, -9)).exit_code == 137  # as a shell shows it


def test_a_long_script_is_cut_behind_its_failure_and_a_short_one_is_not():
    alarm = Finding("G100", "nonfinite_gradient", 500, "model", "x", severity="alarm")
    late = report("nonfinite", (2.0, math.nan), steps=8000)
    late = type(late)(late.facts, (alarm,), late.losses, late.steps, 0)
    assert cut(late, complete=True) == 2000
    assert cut(late, complete=False) == 1500
    assert cut(report("stuck", steps=100), complete=True) == CUT_LEAST
    assert cut(report("stuck", steps=8000), complete=True) == 4000  # learning takes longer than exploding
    for seconds, full, wanted in (
        (500.0, None, 2000),
        (5.0, None, None),
        (500.0, True, None),
        (5.0, False, 2000),
    ):
        runner = Recorded(*[ArmResult(late, 0, seconds)] * 4)
        runs = ScriptRuns(runner, Nobody(), full=full)
        runs([Request(survey=True), Request(steps=30)])
        runs([Request({"lr_factor": 0.1}), Request({"clip_norm": 1.0}, steps=60)])
        assert [asked.steps for asked in runner.asked] == [None, 30, wanted, 60]


def test_every_run_begins_from_the_same_snapshot_and_the_plan_says_whether_it_is_eager():
    runner = Recorded(*[twin(exit_code=0)] * 3)
    runs = ScriptRuns(runner, Nobody(), resume_from="runs/train-1")
    runs([Request(survey=True)])
    runs([Request({"lr_factor": 0.1}), Request({}, seed_offset=1)])
    assert {asked.resume_from for asked in runner.asked} == {"runs/train-1"}
    assert [asked.eager for asked in runner.asked] == [False, False, False]
    assert [asked.seed_offset for asked in runner.asked] == [0, 0, 1]


def test_what_works_so_far_is_the_best_whole_run_with_the_scripts_own_seed():
    lost = ArmResult(report("nonfinite", (2.0, math.nan)), 0)
    good, better, other = (ArmResult(report("learned", (2.0, end)), 0) for end in (0.5, 0.2, 0.1))
    runs = ScriptRuns(Recorded(lost, lost, good, better, other, other), Nobody())
    assert runs.working() is None
    runs([Request(survey=True), Request({"lr_factor": 1.0})])
    assert runs.working() is None
    runs(
        [
            Request({"lr_factor": 0.5}),
            Request({"lr_factor": 0.1}),
            Request({"clip_norm": 1.0}, steps=9),
            Request({"clip_norm": 1.0}, seed_offset=1),
        ]
    )
    assert runs.working().request.plan == {"lr_factor": 0.1}


def result(losses, steps=None, skipped=0, fingerprint=""):
    return ArmResult(
        report(losses=tuple(losses), steps=steps or len(losses), skipped=skipped), 0, fingerprint=fingerprint
    )


def test_equal_steps_of_a_patched_run():
    one = [3.0, 2.0, math.nan, 1.0]
    assert equal_steps(result(one), result(one)) == 4
    assert equal_steps(result(one), result([3.0, 2.0, 1.5, 1.0])) == 2
    assert equal_steps(result([1.0]), result([1.0 + 2**-52])) == 0
    assert equal_steps(result(one, 5000, fingerprint="a"), result([9.0], 5000, fingerprint="a")) == 5000
    assert (
        equal_steps(result(one, 5000, fingerprint="a"), result(one, 900, fingerprint="b")) == 0
    )  # thinned otherwise


def test_a_step_that_the_remedy_skips_is_none_in_the_patched_script():
    arm = result([3.0, math.nan, 2.0, 1.0], skipped=1)
    assert equal_steps(arm, result([3.0, 2.0, 1.0])) == 3
    assert equal_steps(result([3.0, math.nan, 2.0, 1.0]), result([3.0, 2.0, 1.0])) == 1


def test_a_patched_run_trains_as_well_within_the_noise_only():
    lost = report("nonfinite", (2.0, math.nan))
    arm = report(losses=(2.0, 1.0))
    assert trains_as_well(report(losses=(2.0, 1.02)), arm, lost)
    assert trains_as_well(report(losses=(2.0, 0.3)), arm, lost)
    assert not trains_as_well(report(losses=(2.0, 1.9)), arm, lost)
    assert not trains_as_well(report("stuck", (2.0, 1.0)), arm, lost)


def test_the_file_behind_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "pkg" / "sub"
    package.mkdir(parents=True)
    for file in ("train.py", "pkg/__init__.py", "pkg/mod.py", "pkg/sub/__main__.py"):
        (tmp_path / file).write_text("raise SystemExit('nothing is run for that')\n")
    assert source_path(["train.py"], Target("train.py")) == tmp_path / "train.py"
    assert source_path(["-m", "pkg.mod"], Target("pkg.mod", is_module=True)) == tmp_path / "pkg/mod.py"
    assert source_path(["-m", "pkg.sub"], Target("pkg.sub", is_module=True)) == package / "__main__.py"
    assert source_path(["torchrun", "--standalone", "train.py", "x"], None) == tmp_path / "train.py"
    assert source_path(["torchrun", "gone.py"], None) is None
