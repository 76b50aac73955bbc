"""``steadygrad study``: the claims of the literature that this package reproduces, listed and run again.

The studies are scripts of the source tree and not part of the package. They are looked for in the current folder and
beside the source that this package runs from.
"""

from __future__ import annotations

import ast
import json as jsonlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from steadygrad.report import machine

REPRODUCED, NOT_REPRODUCED = 0, 1
VERDICTS = {True: "reproduced", False: "not reproduced", None: "not run"}


class NoStudy(Exception):
    """There are no studies here, or none of that name; one line says what there is."""


def find_studies() -> Path:
    """The folder of the studies.

    Raises:
        NoStudy: it is neither in the current folder nor beside the package's source.
    """
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "studies" / "claim.py").is_file():
            return root / "studies"
    raise NoStudy("the studies are not part of the installed package: run this in a checkout of its source")


def names(folder: Path) -> list[str]:
    """The studies there are."""
    return sorted(path.parent.name for path in folder.glob("*/run.py"))


def claim_of(folder: Path, name: str) -> str:
    """The claim in a line: the first of the script's docstring. The script is not run."""
    said = ast.get_docstring(ast.parse((folder / name / "run.py").read_text(encoding="utf-8")))
    return (said or "").partition("\n")[0]


def verdict_of(folder: Path, name: str) -> bool | None:
    """Whether the claim was reproduced when it was last run; None if it never was, or not to the end."""
    path = folder / name / "results.json"
    return jsonlib.loads(path.read_text(encoding="utf-8")).get("passed") if path.exists() else None


def chosen(name: str | None) -> Path:
    """The folder of the studies, if there is a study of that name.

    Raises:
        NoStudy: there is none.
    """
    folder = find_studies()
    if name is not None and name not in names(folder):
        raise NoStudy(f"no study {name!r}; there are {', '.join(names(folder))}")
    return folder


def job(name: str | None, json: str | None, *, smoke: bool, jobs: int, resume: bool) -> Callable[[], int]:
    """What is to be done: run this study, or list them all.

    Raises:
        NoStudy: there is none of that name, or a package is missing.
    """
    folder = chosen(name)
    if name is None:
        return partial(list_studies, folder, json)
    return partial(run_study, load(folder, name), json, smoke=smoke, jobs=jobs, resume=resume)


def list_studies(folder: Path, json: str | None) -> int:
    """Print each study with its claim and its last verdict."""
    found: list[dict[str, Any]] = [
        {"study": name, "claim": claim_of(folder, name), "passed": verdict_of(folder, name)}
        for name in names(folder)
    ]
    if json != "-":
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("study", "claim", "verdict"):
            table.add_column(title, no_wrap=title != "claim")
        for row in found:
            table.add_row(row["study"], row["claim"], VERDICTS[row["passed"]])
        _console().print(table)
    _write({"schema": machine.SCHEMA, "studies": found}, json)
    return 0


def load(folder: Path, name: str) -> Any:
    """The study of that name, as its script declares it.

    Raises:
        NoStudy: it needs a package that is not installed.
    """
    sys.path.insert(0, str(folder.parent))
    try:
        return import_module(f"studies.{name}.run").STUDY
    except ModuleNotFoundError as missing:
        raise NoStudy(f"{name} needs {missing.name}: pip install 'steadygrad[studies]'") from None


def run_study(study: Any, json: str | None, *, smoke: bool, jobs: int, resume: bool) -> int:
    """Run a study, print the paper's values beside ours, and save them with the picture.

    Args:
        study: from :func:`load`.
        json: file for the object of ``--json``; - for standard output, None for none.
        smoke: run it for seconds only, to see that it works: nothing is judged or saved.
        jobs: runs at once, each in a process of its own if there are several.
        resume: run only what the saved results lack.

    Returns:
        0 reproduced, 1 not. A smoke run that ends has succeeded: 0.
    """
    saved = study.load() if resume and not smoke else {}
    asked = {study.key_of(job): job for job in study.jobs(smoke)}
    runs = [run for run in saved.get("runs", []) if study.key_of(run) in asked]
    had = {study.key_of(run) for run in runs}
    wanted = [job for name, job in asked.items() if name not in had]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True, markup=False), transient=True) as progress:
        task = progress.add_task(study.name, total=len(wanted))
        for run in study.carry_out(wanted, smoke, jobs):
            runs.append(run)
            progress.advance(task)
            if not smoke and len(runs) < len(had) + len(wanted):
                study.save(runs)
    values = [] if smoke else study.save(runs, None if wanted else saved.get("environment"))
    passed = None if smoke else all(value.passed for value in values)
    if json != "-":
        _print(study.name, values, passed, len(runs))
    told = [vars(value) for value in values]
    _write(
        {"schema": machine.SCHEMA, "study": study.name, "values": told, "passed": passed, "smoke": smoke},
        json,
    )
    return NOT_REPRODUCED if passed is False else REPRODUCED


def _print(name: str, values: Sequence[Any], passed: bool | None, runs: int) -> None:
    console = _console()
    console.print(f"{name}: {claim_of(find_studies(), name)}")
    if passed is None:
        console.print(f"smoke: {runs} runs of seconds ended; too short to judge the claim")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("value", "paper or theory", "ours, seed by seed", ""):
        table.add_column(title)
    for value in values:
        ours = ", ".join(f"{x:.4g}" for x in value.measured)
        expected = f"{value.expected} (control)" if value.control else value.expected
        table.add_row(value.name, expected, ours, "pass" if value.passed else "FAIL")
    console.print(table)
    console.print(VERDICTS[passed])


def _console() -> Console:
    """Claims hold brackets: they are no markup."""
    return Console(markup=False, highlight=False)


def _write(value: dict[str, Any], json: str | None) -> None:
    if json == "-":
        print(machine.dumps(value))
    elif json is not None:
        Path(json).write_text(machine.dumps(value) + "\n", encoding="utf-8")
