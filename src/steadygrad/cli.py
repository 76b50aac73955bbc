"""The command line: a thin face over the functions. Importing it loads neither torch nor numpy.

Each command checks what it was given and returns what is to be done; :func:`main` does it outside of typer,
so that a watched script's exceptions meet nobody on their way.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from steadygrad import __version__, config
from steadygrad.checking import run_check, run_diagnose, run_rerun
from steadygrad.cli_choices import Closeness, Engine, Guard, LiveRepair
from steadygrad.cli_words import DiagnoseCommand, RunCommand, Words, checked_target
from steadygrad.integrations.options import Options
from steadygrad.integrations.prescribed import read_prescription
from steadygrad.integrations.script import BadTarget
from steadygrad.mending import Wish, run_repair
from steadygrad.report import machine
from steadygrad.report.terminal import shown_path
from steadygrad.report.text import clean
from steadygrad.running import run_watched
from steadygrad.sinks.names import SinkNotInstalled, checked_sinks
from steadygrad.trace.rundir import NotARun, resolve_run

Job = Callable[[], int | None]
# typer has its own copy of click in some versions and not in others; these are the classes it raises.
UsageError: Any = typer.BadParameter.__mro__[1]
BAD_INPUT = 2

app = typer.Typer(
    help="Keeps PyTorch training steady: watches an untouched script, guards it, says what went wrong.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class BadInput(Exception):
    """What the user typed cannot be used; one line says why."""


@app.callback(invoke_without_command=True)
def _steadygrad(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"steadygrad {__version__}")
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), nl=False)


@app.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
def run(
    words: Words,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the summary as JSON; - for standard output.")
    ] = None,
    quiet: Annotated[
        bool | None,
        typer.Option("--quiet/--no-quiet", help="Say nothing while all is well.", show_default=False),
    ] = None,
    runs: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the run directories (default: runs).")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the run (default: the script's).")
    ] = None,
    guard: Annotated[
        Guard | None, typer.Option(help="Act on trouble, only tell it, or only record (default: on).")
    ] = None,
    tier: Annotated[
        Closeness | None,
        typer.Option(help="How closely to look at weights and activations (default: cheap)."),
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also write to tensorboard, wandb, mlflow or trackio. Can be given several times.",
            show_default=False,
        ),
    ] = None,
    locate: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            min=0,
            help="From this step on look at every operation, until the one that makes the first NaN is found. Slow.",
        ),
    ] = None,
    prescription: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="Put this prescription in force, as `steadygrad repair` writes it. The script stays as it is.",
        ),
    ] = None,
    repair: Annotated[
        LiveRepair,
        typer.Option(
            help="live: after a rollback try remedies on the next steps, and keep the one that helps."
        ),
    ] = LiveRepair.off,
) -> Job:
    """Run a training script as it is: watched, guarded, recorded.

    steadygrad run train.py --epochs 3

    steadygrad run --guard warn -m pkg.train --epochs 3

    steadygrad run -- torchrun --nproc-per-node 2 train.py
    """
    flags = {"runs": runs, "name": name, "guard": guard.value if guard else None, "quiet": quiet}
    flags["tier"] = tier.value if tier else None
    flags["sinks"] = ",".join(sink) if sink else None
    settings = config.load(Path.cwd(), os.environ)
    for key, value in flags.items():
        if value is not None:
            settings[key] = config.check(key, value, f"option --{'sink' if key == 'sinks' else key}")
    try:
        checked_sinks(settings.get("sinks"))
    except SinkNotInstalled as error:
        raise BadInput(str(error)) from None
    quiet = settings.pop("quiet", False)
    options = Options(**settings)
    options = replace(options, runs=os.path.abspath(options.runs), locate=locate, repair=repair.value)
    if options.repair != "off" and options.guard != "on":
        raise BadInput(
            f"--repair {options.repair} needs the guard: it begins where the guard has rolled back"
        )
    if os.path.exists(options.runs) and not os.path.isdir(options.runs):
        raise BadInput(f"the runs folder {options.runs} is a file")
    target = checked_target(words)
    json = _json_path(json)
    if prescription is not None:
        options = replace(options, prescription=read_prescription(prescription))
    return functools.partial(run_watched, words, target, options, quiet=quiet, json=json)


def _json_path(json: str | None) -> str | None:
    """Where the JSON goes, found out before anything runs."""
    if json is None or json == "-":
        return json
    path = os.path.abspath(json)
    if os.path.isdir(path):
        raise BadInput(f"--json {json} is a directory; name a file")
    if not os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK):
        raise BadInput(f"--json {json} cannot be written")
    return path


@app.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
def check(
    words: Words,
    steps: Annotated[int, typer.Option(metavar="N", help="Optimizer steps to watch.", min=1)] = 10,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the forecast as JSON; - for standard output.")
    ] = None,
) -> Job:
    """Run the first steps of a script, stop it, and say whether it will fail. Exit code 1 if it will."""
    target = checked_target(words)
    return functools.partial(run_check, words, target, steps, _json_path(json))


@app.command(cls=DiagnoseCommand)
def diagnose(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run directory, e.g. runs/train-1, or the name of a run; with --rerun a script and its arguments.",
            show_default=False,
        ),
    ],
    rerun: Annotated[
        bool,
        typer.Option(
            "--rerun",
            help="Run the script that follows, then again with one thing changed at a time. It writes its files each "
            "time, in this folder.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --rerun: end each run after so many optimizer steps."),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="With --rerun: runs at once.")] = 2,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="With --rerun: end a run that takes longer."),
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the diagnosis as JSON; - for standard output.")
    ] = None,
) -> Job:
    """Say why a run went wrong: ranked causes, with what speaks for and against them.

    steadygrad diagnose runs/train-1

    steadygrad diagnose --rerun train.py --epochs 3
    """
    if rerun:
        target = checked_target(words)
        return functools.partial(
            run_rerun, words, target, _json_path(json), steps=steps, jobs=jobs, timeout=timeout
        )
    if len(words) > 1 or steps is not None or timeout is not None:
        raise BadInput("diagnose takes one RUN; to run a script again: steadygrad diagnose --rerun SCRIPT")
    root = config.load(Path.cwd(), os.environ).get("runs", "runs")
    return functools.partial(run_diagnose, resolve_run(root, words[0]), _json_path(json))


@app.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
def repair(
    words: Words,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write what was found as JSON; - for standard output.")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Runs at once.")] = 2,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Seeds on which the cure is proven, the script's own among them."
        ),
    ] = 2,
    max_runs: Annotated[
        float, typer.Option(metavar="N", min=1, help="What the search may cost, in whole runs of the script.")
    ] = 30.0,
    max_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="The same in time (default: no limit).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="End a run that takes longer.")
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--no-full",
            help="Judge by runs to the script's end, or only well past the failure (default: to the end if that takes "
            "less than two minutes).",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Where the runs are made: on this machine, or on a Ray cluster.")
    ] = Engine.local,
    resume_from: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Begin each run from the last good snapshot of this run."),
    ] = None,
) -> Job:
    """Find out how a failing training trains: the cure, proven beside the untouched script, and the patch for it.

    steadygrad repair train.py --epochs 3

    The script's own files are not touched: what the runs write is thrown away.
    """
    settings = config.load(Path.cwd(), os.environ)
    runs = os.path.abspath(settings.get("runs", "runs"))
    if os.path.exists(runs) and not os.path.isdir(runs):
        raise BadInput(f"the runs folder {runs} is a file")
    target = checked_target(words)
    wish = Wish(
        words,
        target,
        _json_path(json),
        runs,
        jobs=jobs,
        seeds=seeds,
        max_runs=max_runs,
        max_seconds=math.inf if max_seconds is None else max_seconds,
        timeout=timeout,
        full=full,
        engine=engine.value,
        resume_from=str(resolve_run(runs, resume_from)) if resume_from is not None else None,
    )
    return functools.partial(run_repair, wish)


@app.command()
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/train-1, or the name of a run.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: report.html in the run).")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write where it is as JSON; - for standard output.")
    ] = None,
) -> Job:
    """Write one self-contained HTML file that shows a run."""
    root = config.load(Path.cwd(), os.environ).get("runs", "runs")
    return functools.partial(_report, resolve_run(root, run), out, open_browser, _json_path(json))


def _report(run: Path, out: Path | None, open_browser: bool, json: str | None) -> int:
    from steadygrad.report.html import report_command

    try:
        written = report_command(run, out, open_browser)
        if json not in (None, "-"):
            Path(str(json)).write_text(machine.dumps(written) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the report could not be written: {error}") from None
    print(
        machine.dumps(written) if json == "-" else shown_path(os.path.abspath(written["html"]), os.getcwd())
    )
    return 0


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the snapshots as well.")] = False,
) -> Job:
    """See it work: a real training dies, and trains under steadygrad. About a minute."""
    from steadygrad.demo import run_demo

    runs = config.load(Path.cwd(), os.environ).get("runs", "runs")
    return functools.partial(run_demo, os.path.abspath(runs), seed, keep)


@app.command()
def explain(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A cause, e.g. lr_too_large, or the code of a rule, e.g. G101. Without it: all of them.",
            show_default=False,
        ),
    ] = None,
) -> Job:
    """Say what a cause or a rule is: how it looks, why it happens, what cures it."""
    from steadygrad import knowledge

    try:
        page = knowledge.explain(name)
    except knowledge.UnknownPage as error:
        raise BadInput(str(error)) from None
    return functools.partial(print, knowledge.plain(page, shutil.get_terminal_size().columns), end="")


@app.command()
def study(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Of a study. Without it: all of them.", show_default=False),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Run it for seconds, to see that it works; nothing is judged.")
    ] = False,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Runs at once.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Run only what the saved results lack; draw the picture again.")
    ] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the values as JSON; - for standard output.")
    ] = None,
) -> Job:
    """Run a claim of the literature again: the paper's numbers, ours, and pass or fail. Exit code 1 if it fails."""
    from steadygrad import studying

    try:
        return studying.job(name, _json_path(json), smoke=smoke, jobs=jobs, resume=resume)
    except studying.NoStudy as error:
        raise BadInput(str(error)) from None


def main(args: Sequence[str] | None = None) -> int | None:
    """The ``steadygrad`` command. Returns its exit code; bad input is 2, with one line on stderr."""
    try:
        job = typer.main.get_command(app).main(
            args=list(sys.argv[1:] if args is None else args), prog_name="steadygrad", standalone_mode=False
        )
    except UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "steadygrad"
        message = error.format_message()
        return _complain(f"{message}{'' if message.endswith(('.', '?')) else '.'} See: {command} --help")
    except (BadInput, BadTarget, NotARun, config.ConfigError) as error:
        return _complain(str(error))
    if not callable(job):
        return int(job or 0)
    try:
        return job()
    except BrokenPipeError:  # `steadygrad check train.py | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT
    except BadInput as error:
        return _complain(str(error))


def _complain(text: str) -> int:
    print(f"steadygrad: {clean(text)}", file=sys.stderr)
    return BAD_INPUT
