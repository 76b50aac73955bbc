"""Repair a script: what the search asks for becomes runs in child processes, and the patch is proven by one more."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from steadygrad.diagnose.trial import KEPT, TrialReport
from steadygrad.integrations.arms import ArmRequest, ArmResult, Runner
from steadygrad.integrations.script import Target
from steadygrad.repair.case import EXPLOSION, Case
from steadygrad.repair.mend import Answer, Repair, Request, mend
from steadygrad.repair.patch import NoPatch, write_patch
from steadygrad.repair.prescription import Prescription
from steadygrad.repair.score import beats, level, trains

if TYPE_CHECKING:
    from steadygrad.repair.patch import Patch

LONG = 120.0  # seconds of the untouched run from which on the others are not run to the script's end
CUT_PAST, CUT_LEAST = 3, 200  # times the step at which it failed; steps
CUT_SHARE, CUT_SLOW = 0.25, 0.5  # of its steps; the same where it did not explode: learning takes time
PROVEN = 200  # first steps of the patched run whose losses must equal the remedy's bit for bit
NOISE = math.log(1.1)  # by which a run may end above another and have trained as well

Engine = Literal["local", "ray"]
State = Literal["proven", "as well", "differs", "none"]


class Watcher(Protocol):
    """Somebody who is told of the runs. ``step`` is called from other threads, one at a time."""

    def begin(self, requests: Sequence[Request]) -> None:
        """These runs are about to be made, side by side."""

    def step(self, index: int, step: int, loss: float | None) -> None:
        """A run, by its place among them, is so far."""

    def end(self, index: int, answer: Answer) -> None:
        """It is over."""

    def told(self, what: str, value: Any) -> None:
        """What :func:`steadygrad.repair.mend.mend` tells."""


class ScriptFailed(Exception):
    """The untouched script ended by an error of its own that has nothing to do with how it trains."""

    def __init__(self, result: ArmResult) -> None:
        super().__init__(result.stderr_tail)
        self.result = result

    @property
    def exit_code(self) -> int:
        """As a shell shows it."""
        code = self.result.exit_code or 1
        return 128 - code if code < 0 else code


class NoSteps(Exception):
    """The untouched script ended well, and no optimizer step was seen."""


class Untouched(Exception):
    """The untouched run came to nothing that can be judged: it took too long, or a snapshot cannot be used."""


@dataclass(frozen=True)
class Proof:
    """What came of the patch: it is offered if its own run trains."""

    state: State
    patch: Patch | None = None
    path: Path | None = None  # of the file that it changes
    steps: int = 0  # first steps whose losses are those of the remedy's run, bit for bit
    note: str = ""  # why there is none


@dataclass(frozen=True)
class Run:
    """One that was made."""

    request: Request
    result: ArmResult


@dataclass
class ScriptRuns:
    """Makes the runs that :func:`~steadygrad.repair.mend.mend` asks for, and keeps what came of them.

    Args:
        runner: makes the runs.
        watcher: is told of them.
        full: every run goes to the script's own end; None: if the untouched one takes less than two minutes.
        resume_from: run directory from whose newest good snapshot each run begins.
    """

    runner: Runner
    watcher: Watcher
    full: bool | None = None
    resume_from: str | None = None
    made: list[Run] = field(default_factory=list)
    twin: ArmResult | None = None
    case: Case | None = None  # the untouched run, diagnosed, if it fails
    steps: int | None = None  # at which runs are ended that would go to the script's end

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        self.watcher.begin(requests)

        def finished(index: int, result: ArmResult) -> None:
            self.made.append(Run(requests[index], result))
            self.watcher.end(index, _answer(result))

        arms = [self._arm(request) for request in requests]
        results = self.runner.run_all(arms, self.watcher.step, finished=finished)
        if self.twin is None:
            self._met(results[0])
        return [_answer(result) for result in results]

    def _arm(self, request: Request, patched: Mapping[str, str] | None = None) -> ArmRequest:
        return ArmRequest(
            plan=request.plan,
            seed_offset=request.seed_offset,
            steps=self.steps if request.steps is None else request.steps,
            survey=request.survey,
            eager=Prescription(request.plan).eager,
            patched=patched or {},
            resume_from=self.resume_from,
        )

    def _met(self, twin: ArmResult) -> None:
        """The untouched run is over: whether it can be judged, and how far the others go."""
        self.twin = twin
        if twin.report is None:
            if twin.user_error:
                raise ScriptFailed(twin)
            raise NoSteps(twin.note) if twin.exit_code == 0 else Untouched(twin.note)
        if own_error(twin):
            raise ScriptFailed(twin)
        if self.full is False or self.full is None and twin.seconds > LONG:
            self.steps = cut(twin.report, complete=twin.report.whole and not twin.user_error)

    def result(self, request: Request) -> ArmResult | None:
        """Of the newest run that was asked for like this."""
        wanted = (dict(request.plan), request.seed_offset, request.steps)
        found = (
            m.result
            for m in reversed(self.made)
            if (dict(m.request.plan), m.request.seed_offset, m.request.steps) == wanted
        )
        return next(found, None)

    def working(self) -> Run | None:
        """The best run so far under a remedy, if one trains where the untouched one does not."""
        twin = self.twin.report if self.twin is not None else None
        if twin is None:
            return None
        good = [
            (level(made.result.report, twin), i)
            for i, made in enumerate(self.made)
            if made.request.plan
            and made.request.steps is None
            and made.request.seed_offset == 0
            and made.result.report is not None
            and trains(made.result.report)
            and beats(made.result.report, twin)
        ]
        return self.made[min(good)[1]] if good else None

    def run_patched(self, path: Path, source: str) -> ArmResult:
        """The script with another text for one of its files, nothing else changed."""
        request = Request(name="the patched script, nothing else changed")
        self.watcher.begin([request])

        def finished(index: int, result: ArmResult) -> None:
            self.watcher.end(index, _answer(result))

        arm = self._arm(request, {str(path): source})
        return self.runner.run_all([arm], self.watcher.step, finished=finished)[0]


def _answer(result: ArmResult) -> Answer:
    return Answer(result.report, result.note, result.seconds)


def own_error(twin: ArmResult) -> bool:
    """Whether the script has raised, and not because of what its training came to.

    A script that checks its loss and raises says so in its last words, or its losses do.
    """
    lines = twin.stderr_tail.strip().splitlines()
    if not twin.user_error or not any(line.startswith("Traceback (most recent") for line in lines):
        return False
    report = twin.report
    verdict = report.facts.verdict if report is not None else None
    if verdict is not None and verdict.kind in EXPLOSION:
        return False
    last = lines[-1].lower()
    return not any(word in last for word in ("nan", "inf", "finite", "diverge", "explode", "overflow"))


def cut(twin: TrialReport, *, complete: bool) -> int:
    """Steps of a run that is to tell whether a remedy works, without going to the script's end.

    Args:
        twin: the untouched run.
        complete: it came to the script's end; else its length says nothing.
    """
    case = Case(twin.facts, findings=twin.findings)
    past = CUT_PAST * case.failed_at if case.failed_at is not None else 0
    share = math.ceil((CUT_SHARE if case.exploded else CUT_SLOW) * twin.steps) if complete else 0
    return max(past, share, CUT_LEAST)


def runner_of(
    engine: Engine, words: Sequence[str], target: Target | None, *, jobs: int, timeout: float | None
) -> AbstractContextManager[Runner]:
    """What makes the runs.

    Raises:
        ImportError: Ray is asked for and not installed; the message says what to do.
    """
    if engine == "ray":
        from steadygrad.integrations.ray_arms import RayArmRunner

        return RayArmRunner(words, target, jobs=jobs, timeout=timeout)
    from steadygrad.integrations.arms import ArmRunner

    return ArmRunner(words, target, jobs=jobs, timeout=timeout)


def mend_script(runs: ScriptRuns, *, seeds: int, max_runs: float, max_seconds: float) -> Repair:
    """Find a remedy for a script.

    Raises:
        ScriptFailed, NoSteps, Untouched: the untouched script gives nothing to repair.
    """

    def told(what: str, value: Any) -> None:
        if what == "verdict":
            runs.case = value
        runs.watcher.told(what, value)

    return mend(runs, seeds=seeds, max_runs=max_runs, max_seconds=max_seconds, told=told)


# ---------------------------------------------------------------------- the patch
def prove_patch(runs: ScriptRuns, repair: Repair, words: Sequence[str], target: Target | None) -> Proof:
    """Write the remedy into the script's text, run that, and compare it with the remedy's own run."""
    path = source_path(words, target)
    if path is None:
        return Proof("none", note="no Python file of yours was found behind this command")
    try:
        path, patch = _written([path, *_other_files(repair.twin.survey)], repair)
    except NoPatch as reason:
        return Proof("none", note=str(reason))
    except (OSError, UnicodeDecodeError) as error:
        return Proof("none", note=f"{path.name} cannot be read as text: {error}")
    arm = runs.result(Request(repair.plan))
    patched = runs.run_patched(path, patch.source)
    if arm is None or arm.report is None or patched.report is None:
        why = _last_line(patched) if patched.report is None else "there is no run to compare it with"
        return Proof("differs", patch, path, note=f"the patched script did not come to its end: {why}")
    steps = equal_steps(arm, patched)
    if steps >= min(arm.report.steps - arm.report.skipped, patched.report.steps, PROVEN):
        return Proof("proven", patch, path, steps)
    if trains_as_well(patched.report, arm.report, repair.twin):
        return Proof("as well", patch, path, steps)
    verdict = patched.report.facts.verdict
    came = verdict.reason if verdict is not None else ""
    return Proof(
        "differs", patch, path, steps, f"the patched script does not train like the remedy's run: {came}"
    )


def _written(paths: Sequence[Path], repair: Repair) -> tuple[Path, Patch]:
    """The first of these files into which the remedy can be written.

    Raises:
        NoPatch: none; why not into the first.
    """
    first: NoPatch | None = None
    for path in dict.fromkeys(paths):
        with path.open(encoding="utf-8", newline="") as file:  # line ends stay as they are
            source = file.read()
        try:
            return path, write_patch(source, _shown(path), repair.plan, repair.twin.survey)
        except NoPatch as reason:
            first = first or reason
    assert first is not None
    raise first


def _other_files(survey: Mapping[str, Any]) -> list[Path]:
    """Further files of the user's in which the training does something, by what the survey of the twin has seen."""
    sites = survey.get("sites", {})
    places = [*sites.get("forward", ()), *sites.get("backward", ())]
    for built in sites.get("optimizers", ()):
        places += [built["built"], *built["steps"]]
    shown = [p["file"] for p in places if p is not None and p["owner"] == "user"]
    return [path for name in dict.fromkeys(shown) if (path := Path(name).absolute()).is_file()]


def _last_line(result: ArmResult) -> str:
    said = result.stderr_tail.strip().splitlines()
    return result.note or (said[-1] if said else "it took no step")


def equal_steps(arm: ArmResult, patched: ArmResult) -> int:
    """First steps at which both runs have the same losses, bit for bit, as far as the reports tell.

    A step that the remedy has skipped is none in the patched script, which does not call the optimizer there.
    """
    one, other = arm.report, patched.report
    assert one is not None and other is not None
    if arm.fingerprint and arm.fingerprint == patched.fingerprint:
        return one.steps
    stride = stride_of(one)
    if stride != stride_of(other):  # thinned differently: they cannot be laid side by side
        return 0
    skips = one.skipped if stride == 1 else 0
    losses = iter(other.losses)
    wanted = next(losses, None)
    same = 0
    for loss in one.losses:
        if wanted is None:
            break
        if loss == wanted or math.isnan(loss) and math.isnan(wanted):
            same += 1
            wanted = next(losses, None)
        elif skips > 0:
            skips -= 1
        else:
            break
    return min(same * stride, other.steps)


def stride_of(report: TrialReport) -> int:
    """Steps between two losses of a report."""
    return max(1, -(-report.steps // KEPT))


def trains_as_well(run: TrialReport, arm: TrialReport, twin: TrialReport) -> bool:
    """Whether a run ends no higher than the noise of the losses allows."""
    noise = arm.facts.loss_noise
    allowed = max(NOISE, 2 * noise) if math.isfinite(noise) else NOISE
    return trains(run) and level(run, twin) <= level(arm, twin) + allowed


def source_path(words: Sequence[str], target: Target | None) -> Path | None:
    """The file that the script's text stands in; None if there is none to be found.

    Nothing is imported for it: a module's package would run.
    """
    if target is None:
        names = [Path(word) for word in words if word.endswith(".py")]
        return next((name.absolute() for name in names if name.is_file()), None)
    if not target.is_module:
        path = Path(target.name).absolute()
        return path if path.is_file() else None
    inside = Path(*target.name.split("."))
    for folder in (".", *sys.path):
        for path in (Path(folder) / inside.with_suffix(".py"), Path(folder) / inside / "__main__.py"):
            if path.is_file():
                return path.absolute()
    return None


def _shown(path: Path) -> str:
    """As the patch names it: relative to the folder that one stands in."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()
