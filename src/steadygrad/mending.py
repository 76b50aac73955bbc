"""``steadygrad repair``: finds the remedy for a script, proves it, and says it to people and to machines."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from steadygrad.integrations.launcher import shown_name
from steadygrad.integrations.script import Target
from steadygrad.report import machine, repair_text
from steadygrad.report.closing import print_no_steps
from steadygrad.report.repair_table import ArmsScreen, outcome
from steadygrad.report.terminal import shown_path
from steadygrad.report.text import clean
from steadygrad.trace.rundir import create_run_dir

if TYPE_CHECKING:  # they load numpy and torch, which --help has no need of
    from steadygrad.integrations.mend_script import Engine, Proof, Run, ScriptRuns
    from steadygrad.repair.case import Case
    from steadygrad.repair.mend import Answer, Repair, Request

CURED, NOT_CURED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    words: Sequence[str]
    target: Target | None
    json: str | None  # file, absolute; "-" for standard output
    runs: str  # folder of the run directories, absolute
    jobs: int = 2
    seeds: int = 2
    max_runs: float = 30.0
    max_seconds: float = float("inf")
    timeout: float | None = None
    full: bool | None = None
    engine: Engine = "local"
    resume_from: str | None = None

    @property
    def shown(self) -> str:
        return self.target.shown if self.target is not None else shown_name(self.words)

    @property
    def stem(self) -> str:
        return self.target.stem if self.target is not None else Path(self.shown).stem


def run_repair(wish: Wish) -> int:
    """Repair a script, and return the exit code.

    0 cured, or nothing to cure; 1 not cured; 2 the script cannot be started, or took no step; 130 after an interrupt.
    A script that fails by itself: its own words on stderr, and its own exit code.
    """
    from steadygrad.integrations import mend_script as scripts
    from steadygrad.repair.mend import NoRun

    shown, stream = clean(wish.shown), sys.stderr if wish.json == "-" else sys.stdout
    voice = _Voice(stream)
    runs: ScriptRuns | None = None
    try:
        runner = scripts.runner_of(wish.engine, wish.words, wish.target, jobs=wish.jobs, timeout=wish.timeout)
        with runner as made:
            runs = scripts.ScriptRuns(made, voice, full=wish.full, resume_from=wish.resume_from)
            try:
                found = scripts.mend_script(
                    runs, seeds=wish.seeds, max_runs=wish.max_runs, max_seconds=wish.max_seconds
                )
                proof = scripts.prove_patch(runs, found, wish.words, wish.target) if found.cured else None
            finally:
                voice.close()
    except ImportError as error:
        if wish.engine != "ray":
            raise
        print(f"steadygrad: {clean(error)}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(
            f"steadygrad: {clean(wish.words[0])} cannot be started: {error.strerror or error}",
            file=sys.stderr,
        )
        return BAD_INPUT
    except scripts.ScriptFailed as failure:
        return _failed_by_itself(wish, failure)
    except scripts.NoSteps:
        print_no_steps(wish.shown, "ended", failed=False, launched=wish.target is None, stream=sys.stderr)
        return BAD_INPUT
    except (scripts.Untouched, NoRun) as error:
        print(f"{shown} cannot be repaired: {clean(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        return _interrupted(wish, runs, stop, stream)
    assert runs is not None
    return _tell(wish, runs, found, proof, stream)


def _failed_by_itself(wish: Wish, failure: Any) -> int:
    result = failure.result
    if result.stderr_tail.strip():
        print(result.stderr_tail.rstrip("\n"), file=sys.stderr)
    if result.report is None:
        ended = _how_it_ended(result.exit_code)
        print_no_steps(wish.shown, ended, failed=True, launched=wish.target is None, stream=sys.stderr)
    else:
        print(
            f"{clean(wish.shown)} failed after {result.report.steps:,} steps, by an error of its own: "
            "mend that first. Nothing was repaired.",
            file=sys.stderr,
        )
    return int(failure.exit_code)


def _how_it_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


# ---------------------------------------------------------------------- while it runs
class _Voice:
    """Shows the runs as they go, and says each stage when it is over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._screen = ArmsScreen(stream, sys.stderr)
        self._stage = "1/4  the untouched run"
        self._first = 0

    def begin(self, requests: Sequence[Request]) -> None:
        if any(r.seed_offset for r in requests):
            self._stage = "4/4  other seeds"
        elif any(r.plan for r in requests):
            self._stage = "3/4  trials"
        elif not requests[0].survey:
            self._stage = "4/4  the patch"
        names = [f"{r.name} (other seed)" if r.seed_offset else r.name for r in requests]
        self._first = self._screen.begin(self._stage, names)

    def step(self, index: int, step: int, loss: float | None) -> None:
        self._screen.step(self._first + index, step, loss)

    def end(self, index: int, answer: Answer) -> None:
        if answer.report is None:
            self._screen.end(self._first + index, answer.note or "it took no step")
            return
        from steadygrad.report.repair_json import run_json

        came = run_json(answer.report)
        self._screen.end(
            self._first + index, f"{outcome(came)} after {came['steps']:,} steps", came["trains"]
        )

    def told(self, what: str, value: Any) -> None:
        if what != "verdict":
            return
        self._screen.close()
        case: Case = value
        verdict, located = case.facts.verdict, case.facts.located
        reason = verdict.reason if verdict is not None else ""
        repair_text.say(
            repair_text.untouched(reason, case.failed_at if case.exploded else None), self._stream
        )
        first = located.to_json() if located is not None else None
        repair_text.say(repair_text.why([c.to_json() for c in case.causes], first), self._stream)

    def close(self) -> None:
        self._screen.close()


# ---------------------------------------------------------------------- the end
def _told(wish: Wish, runs: ScriptRuns, repair: Repair, proof: Proof | None) -> dict[str, Any]:
    """What was found, for people and for machines."""
    from steadygrad.report.repair_json import repair_json

    patch = proof.patch if proof is not None else None
    return {
        **repair_json(repair, wish.shown, wish.words),
        "cut_at": runs.steps,
        "resumed_from": runs.resume_from,
        "patch_state": proof.state if proof is not None else "none",
        "patch_steps": proof.steps if proof is not None else 0,
        "patch_note": proof.note if proof is not None else "",
        "patch_notes": list(patch.notes) if patch is not None else [],
        "notes": _notes(runs, repair),
    }


def _notes(runs: ScriptRuns, repair: Repair) -> list[str]:
    """What people should know of the runs themselves."""
    notes = list(repair.notes)
    if (twin := runs.twin) is not None and twin.note:
        notes.append(twin.note)
    if runs.resume_from is not None:
        notes.append(
            f"every run began from the last good snapshot of {shown_path(runs.resume_from, os.getcwd())}"
        )
    escaped = sorted({path for made in runs.made for path in made.result.escaped})
    if escaped:
        notes.append(
            f"the runs have written to files of yours that could not be kept apart: {', '.join(escaped[:5])}"
        )
    if runs.steps is not None and not repair.healthy:
        notes.append(
            f"the untouched run takes long: remedies were judged at step {runs.steps:,}, not at the script's end. "
            "steadygrad repair --full runs them to the end"
        )
    return list(dict.fromkeys(notes))


def _tell(wish: Wish, runs: ScriptRuns, repair: Repair, proof: Proof | None, stream: TextIO) -> int:
    found = _told(wish, runs, repair, proof)
    if repair.healthy:
        repair_text.say(repair_text.healthy(machine.strict(found)), stream)
        _write(found, wish.json)
        return CURED
    repair_text.say(repair_text.trials(machine.strict(found)), stream)
    if not repair.cured:
        repair_text.say(repair_text.not_cured(machine.strict(found)), stream)
        repair_text.say(repair_text.notes(found["notes"]), stream)
        _write(found, wish.json)
        return NOT_CURED
    assert proof is not None and repair.fixed is not None
    offered = proof.patch is not None and proof.state != "differs"
    diff = proof.patch.diff if proof.patch is not None else ""
    try:
        saved = _save(wish, found, repair, diff, offered)
    except OSError as error:  # the cure is printed all the same
        print(f"steadygrad: nothing could be saved in {clean(wish.runs)}: {error.strerror}", file=sys.stderr)
        saved = found
    repair_text.say(repair_text.seeds(machine.strict(saved)), stream)
    repair_text.say(repair_text.cure(machine.strict(saved), diff), stream)
    repair_text.say(repair_text.notes(saved["notes"]), stream)
    if saved["prescription"] is not None:
        apply = apply_command(saved["patch"], proof.path) if saved["patch"] and proof.path is not None else ""
        again = with_command(saved["prescription"], wish.words)
        repair_text.say([("", ""), *repair_text.next_steps(saved, apply, again)], stream)
    _write(saved, wish.json)
    return CURED


def apply_command(patch: str, changed: Path) -> str:
    """What puts a patch in force. ``git apply`` needs no repository, and takes what lies below this folder."""
    if changed.is_relative_to(Path.cwd()):
        return f"git apply {shlex.quote(patch)}"
    return f"patch {shlex.quote(str(changed))} {shlex.quote(patch)}"


def with_command(prescription: str, words: Sequence[str]) -> str:
    return f"steadygrad run --with {shlex.quote(prescription)} {shlex.join(words)}"


def _save(wish: Wish, found: dict[str, Any], repair: Repair, diff: str, offered: bool) -> dict[str, Any]:
    """Write the prescription, its page and the patch into a new run directory. Returns the object with their paths."""
    from steadygrad.report.prescription_page import render

    assert repair.fixed is not None
    folder = create_run_dir(wish.runs, None, wish.stem)
    path = folder / "prescription.json"
    found = {**found, "prescription": shown_path(str(path), os.getcwd())}
    if offered:
        (folder / "fix.patch").write_text(diff, encoding="utf-8", newline="")
        found["patch"] = shown_path(str(folder / "fix.patch"), os.getcwd())
    path.write_text(machine.dumps(found) + "\n", encoding="utf-8")
    again = with_command(found["prescription"], wish.words)
    page = render(machine.strict(found), repair.twin, repair.fixed, diff, again)
    (folder / "prescription.html").write_text(page, encoding="utf-8", errors="replace")
    return found


def _interrupted(wish: Wish, runs: ScriptRuns | None, stop: KeyboardInterrupt, stream: TextIO) -> int:
    """Every run is dead; what was found so far is kept, if something works."""
    print(f"{clean(wish.shown)} was interrupted.", file=sys.stderr)
    works = runs.working() if runs is not None else None
    if runs is not None and works is not None:
        found = _so_far(wish, runs, works)
        folder = create_run_dir(wish.runs, None, wish.stem)
        path = folder / "prescription.json"
        found["prescription"] = shown_path(str(path), os.getcwd())
        path.write_text(machine.dumps(found) + "\n", encoding="utf-8")
        again = with_command(found["prescription"], wish.words)
        print(f"What worked so far: {clean(works.request.name)}; saved {found['prescription']}", file=stream)
        print(f"next: {again}", file=stream)
        _write(found, wish.json)
    number = int(getattr(stop, "signal", 0) or signal.SIGINT)
    return 128 + number


def _so_far(wish: Wish, runs: ScriptRuns, works: Run) -> dict[str, Any]:
    """A prescription that was not tried on other seeds, nor as a patch."""
    from steadygrad.report.repair_json import run_json

    twin = runs.twin.report if runs.twin is not None else None
    assert twin is not None and works.result.report is not None
    causes = runs.case.causes if runs.case is not None else ()
    return {
        "schema": machine.SCHEMA,
        "cured": False,
        "healthy": False,
        "interrupted": True,
        "causes": [c.to_json() for c in causes],
        "prescription": None,
        "remedies": [r.name for r in works.request.remedies],
        "patch": None,
        "twin": run_json(twin),
        "fixed": run_json(works.result.report),
        "arms": [
            {"name": made.request.name, **run_json(made.result.report)}
            for made in runs.made
            if made.request.plan and made.result.report is not None
        ],
        "steps_total": sum(m.result.report.steps for m in runs.made if m.result.report is not None),
        "seconds": sum(m.result.seconds for m in runs.made),
        "script": wish.shown,
        "argv": list(wish.words),
        "plan": dict(works.request.plan),
        "advice": [r.advice for r in works.request.remedies],
    }


def _write(found: Mapping[str, Any], json: str | None) -> None:
    if json == "-":
        print(machine.dumps(found))
    elif json is not None:
        Path(json).write_text(machine.dumps(found) + "\n", encoding="utf-8")
