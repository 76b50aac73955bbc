"""Run a command that starts Python processes of its own (torchrun, a shell script); watch those that train.

The command runs as a child, with a folder put first in its ``PYTHONPATH``. Every Python process under it then
imports our ``sitecustomize`` at its start (see ``site_hook``). Each one that takes an optimizer step writes
its own trace into the one run directory; this process reads them all together at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from steadygrad.config import LAUNCH_VARIABLE
from steadygrad.integrations.options import Options
from steadygrad.integrations.script import BadTarget, Ending
from steadygrad.trace.rundir import create_run_dir

if TYPE_CHECKING:
    from steadygrad.records import RunSummary

SITE_HOOK = Path(__file__).resolve().parents[1] / "site_hook"
_TERMINAL_SIGNALS = ("SIGINT", "SIGQUIT")  # a terminal sends them to the child as well
_SIGNALS = (*_TERMINAL_SIGNALS, "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def check_command(words: Sequence[str]) -> None:
    """Raise BadTarget if there is no such command."""
    if shutil.which(words[0]) is None:
        raise BadTarget(f"no such script or command: {words[0]}")


def shown_name(words: Sequence[str]) -> str:
    """What the command is called for people: by the script if it names one.

    Example:
        >>> shown_name(["torchrun", "--nproc-per-node", "2", "src/train.py", "--lr", "3"])
        'train.py'
    """
    return os.path.basename(next((word for word in words if word.endswith(".py")), words[0]))


def child_environment(
    environ: Mapping[str, str], run_dir: Path, options: Options, *, quiet: bool, cwd: str
) -> dict[str, str]:
    """The environment that carries us into every Python process under the command."""
    settings: dict[str, Any] = {"run_dir": str(run_dir), "guard": options.guard, "tier": options.tier}
    settings |= {"locate": options.locate, "repair": options.repair, "prescription": options.prescription}
    settings |= {"sinks": list(options.sinks)}
    settings |= {"quiet": quiet, "cwd": cwd}
    if options.prescription is not None and options.prescription["eager"]:
        environ = {**environ, "TORCH_COMPILE_DISABLE": "1"}  # its effects do not reach into compiled code
    return with_site_hook(environ, settings)


def with_site_hook(environ: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """An environment in which every Python process does, at its start, what the settings say."""
    path = environ.get("PYTHONPATH")
    return {
        **environ,
        "PYTHONPATH": f"{SITE_HOOK}{os.pathsep}{path}" if path else str(SITE_HOOK),
        LAUNCH_VARIABLE: json.dumps(settings),
    }


def run_command(
    words: Sequence[str],
    options: Options,
    *,
    quiet: bool,
    started: Callable[[str], None],
    at_end: Callable[[RunSummary | None, Ending], None],
) -> NoReturn:
    """Run a command as a child, with every Python process under it watched, and end as it ended.

    Args:
        words: the command and its arguments; :func:`check_command` has passed.
        options: how its processes are watched.
        quiet: they say nothing.
        started: called with the run directory.
        at_end: called once with what all processes came to; None if none took a step.

    Raises:
        SystemExit: with the command's exit code. If a signal killed it, this process dies by the same signal.
        OSError: the runs folder cannot be written, or the command cannot be started.
    """
    run_dir = create_run_dir(Path(options.runs), options.name, default=Path(shown_name(words)).stem)
    began = time.monotonic()
    try:
        environment = child_environment(os.environ, run_dir, options, quiet=quiet, cwd=os.getcwd())
        started(str(run_dir))
        code = wait_for(words, environment)
    finally:
        if not any(run_dir.iterdir()):
            run_dir.rmdir()
    summary = None
    if run_dir.exists():
        from steadygrad.integrations.merged import summarize  # loads numpy, which --help has no need of

        summary = summarize(run_dir, time.monotonic() - began)
    at_end(summary, Ending(code if code >= 0 else 128 - code))
    if code < 0:
        _die_by(-code)
    raise SystemExit(code)


def wait_for(words: Sequence[str], environment: Mapping[str, str], stdout: TextIO | None = None) -> int:
    """Start the command, pass signals on to it until it has ended, and return its exit code as ``subprocess`` does."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number in terminal and _in_foreground():
            return  # the terminal has sent it to the child too; twice would cut its tidying short
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    terminal = {getattr(signal, name) for name in _TERMINAL_SIGNALS if hasattr(signal, name)}
    before = {}
    for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored, as by nohup: the child inherits that
            before[number] = signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(list(words), env=dict(environment), stdout=stdout)
        for number in early:
            child.send_signal(number)
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except (OSError, AttributeError):  # no terminal, or Windows
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _die_by(number: int) -> NoReturn:
    """End as the child did, so that whoever waits for us sees the same."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it is the child's memory that is of interest
        signal.signal(number, signal.SIG_DFL)
    except (ImportError, OSError, ValueError):  # SIGKILL needs no default
        pass
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # the signal was blocked
