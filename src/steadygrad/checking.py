"""``steadygrad check`` and ``steadygrad diagnose``: what they found, for people and for machines."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadygrad.integrations.check import OWN_ERROR, check_script
from steadygrad.integrations.launcher import shown_name
from steadygrad.integrations.script import Target
from steadygrad.report import machine
from steadygrad.report.closing import print_no_steps
from steadygrad.report.terminal import shown_path
from steadygrad.report.text import clean
from steadygrad.report.verdict_text import print_diagnosis, print_forecast, print_rerun

STEADY, WILL_FAIL, UNKNOWN = 0, 1, 2
INTERRUPTED = (-2, 130)  # as a child tells it, and as a shell does


def run_check(words: Sequence[str], target: Target | None, steps: int, json: str | None) -> int:
    """Run the first steps of a script, say what will become of it, and return the exit code.

    0 steady, 1 will fail, 2 could not tell: no step was taken, or the script failed by itself before enough were. An
    interrupt is passed on: 130.
    """
    shown = target.shown if target is not None else shown_name(words)
    try:
        checked = check_script(words, target, steps, quiet=json == "-")
    except OSError as error:
        print(f"steadygrad: {clean(words[0])} cannot be started: {error.strerror}", file=sys.stderr)
        return UNKNOWN
    if checked.exit_code in INTERRUPTED:
        print(f"{clean(shown)} was interrupted.", file=sys.stderr)
        return INTERRUPTED[1]
    if checked.exit_code == OWN_ERROR:  # it has said which
        print(f"{clean(shown)} was stopped: no forecast can be made.", file=sys.stderr)
        return UNKNOWN
    ended = _how_it_ended(checked.exit_code)
    if checked.forecast is None:
        failed = checked.exit_code != 0
        print_no_steps(shown, ended, failed=failed, launched=target is None, stream=sys.stderr)
        return UNKNOWN
    forecast = {"schema": machine.SCHEMA, **checked.forecast}
    if json != "-":
        print_forecast(forecast, shown, ended, f"steadygrad run {shlex.join(words)}", sys.stdout)
    _write(forecast, json)
    if forecast["will_fail"]:
        return WILL_FAIL
    return STEADY if forecast["stopped"] or checked.exit_code == 0 else UNKNOWN


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}" if code else "ended"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def run_diagnose(run: Path, json: str | None) -> int:
    """Say why a run went wrong, from its directory."""
    from steadygrad.diagnose.stored import diagnose_run  # loads numpy, which --help has no need of

    found = diagnose_run(run)
    diagnosis: dict[str, Any] = machine.strict(
        {
            "schema": machine.SCHEMA,
            "run_dir": shown_path(os.path.abspath(run), os.getcwd()),
            "steps": found.steps,
            "verdict": found.verdict,
            "causes": [c.to_json() for c in found.causes],
            "findings": [f.to_json() for f in found.findings],
            "first_nonfinite": found.first_nonfinite.to_json() if found.first_nonfinite else None,
            "notes": list(found.notes),
        }
    )
    if json != "-":
        print_diagnosis(diagnosis, sys.stdout)
    _write(diagnosis, json)
    return 0


def run_rerun(
    words: Sequence[str],
    target: Target | None,
    json: str | None,
    *,
    steps: int | None,
    jobs: int,
    timeout: float | None,
) -> int:
    """Repeat a script with one thing changed at a time, and say why its training fails.

    0; 2 if the unchanged script took no step, or too long. An interrupt ends every run: 130.
    """
    from steadygrad.integrations.rerun import NoReport, rerun_script

    shown = target.shown if target is not None else shown_name(words)

    def told(name: str) -> None:
        print(f"running {clean(shown)}: {clean(name)}", file=sys.stderr)

    try:
        found = rerun_script(words, target, steps=steps, jobs=jobs, timeout=timeout, told=told)
    except OSError as error:
        print(f"steadygrad: {clean(words[0])} cannot be started: {error.strerror}", file=sys.stderr)
        return UNKNOWN
    except NoReport as error:
        said = "\n".join(map(clean, str(error).splitlines()))
        print(f"{clean(shown)} cannot be diagnosed: {said}", file=sys.stderr)
        return UNKNOWN
    except KeyboardInterrupt:
        print(f"{clean(shown)} was interrupted.", file=sys.stderr)
        return INTERRUPTED[1]
    facts = found.twin.facts
    assert facts.verdict is not None
    diagnosis: dict[str, Any] = machine.strict(
        {
            "schema": machine.SCHEMA,
            "run_dir": None,
            "script": shown,
            "steps": found.twin.steps,
            "verdict": facts.verdict.reason,
            "causes": [c.to_json() for c in found.causes],
            "findings": [f.to_json() for f in found.twin.findings],
            "first_nonfinite": facts.located.to_json() if facts.located else None,
            "notes": list(found.notes),
            "twin": {"verdict": facts.verdict.reason, "loss_last": facts.verdict.end},
            "arms": [
                {
                    "name": arm.intervention.name,
                    "cause": arm.intervention.cause,
                    "verdict": arm.outcome.verdict.reason if arm.outcome is not None else arm.note,
                    "loss_last": arm.outcome.verdict.end if arm.outcome is not None else None,
                    "recovered": arm.recovered,
                }
                for arm in found.arms
            ],
        }
    )
    if json != "-":
        print_rerun(diagnosis, sys.stdout)
    _write(diagnosis, json)
    return 0


def _write(value: dict[str, Any], json: str | None) -> None:
    if json == "-":
        print(machine.dumps(value))
    elif json is not None:
        Path(json).write_text(machine.dumps(value) + "\n", encoding="utf-8")
