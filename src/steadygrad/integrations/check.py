"""``steadygrad check``: run a script up to its first steps, in a process of its own, and stop it there.

The child is any Python process under the command that takes an optimizer step. It writes its forecast to a file and
ends at once, without the script's ``finally`` blocks and exit handlers: they would save an untrained model. One that
takes fewer steps than asked for ends by itself, and is judged by those.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steadygrad.integrations.launcher import wait_for, with_site_hook
from steadygrad.integrations.script import Target

if TYPE_CHECKING:
    from steadygrad.forecasting.result import Forecast

OWN_ERROR = 70


@dataclass(frozen=True)
class Checked:
    """What came of a check. ``forecast`` has the key ``stopped``: False if the script ended before we stopped it."""

    forecast: dict[str, Any] | None  # None: no step was seen
    exit_code: int  # of the command; negative: the signal that ended it


def check_script(words: Sequence[str], target: Target | None, steps: int, *, quiet: bool = False) -> Checked:
    """Run a script or command until one of its processes has taken its first steps.

    Args:
        words: the command, or the script with its arguments.
        target: the script or module among them; None if the words are another command.
        steps: optimizer steps to watch, at least 1.
        quiet: what the script prints goes to standard error.

    Raises:
        OSError: the command cannot be started.
    """
    folder = Path(tempfile.mkdtemp(prefix="steadygrad-check-"))
    try:
        environment = _environment(os.environ, folder, steps)
        code = wait_for(command_of(words, target), environment, sys.stderr if quiet else None)
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("forecast-*.json"))]
        return Checked(found[0] if found else None, code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command_of(words: Sequence[str], target: Target | None) -> list[str]:
    """The words that start a script or command in a process of its own."""
    if target is None:
        return list(words)
    script = ["-m", target.name] if target.is_module else [target.name]
    return [sys.executable, *script, *target.args]


def _environment(environ: Mapping[str, str], folder: Path, steps: int) -> dict[str, str]:
    return with_site_hook(environ, {"check": {"folder": str(folder), "steps": steps}})


def check_this_process(folder: str, steps: int) -> None:
    """In the child, when torch has been imported: listen from now on. What fails of ours ends the child."""

    def write(forecast: Forecast, stopped: bool) -> None:
        from steadygrad.trace.jsontext import dumps  # loads numpy: not in a process that only starts others

        path = Path(folder) / f"forecast-{os.environ.get('RANK', '0')}-{os.getpid()}.json"
        part = path.with_suffix(".part")
        part.write_text(dumps({**forecast.to_json(), "stopped": stopped}))
        os.replace(part, path)

    def enough(forecast: Forecast) -> None:
        write(forecast, stopped=True)
        leave(0)

    def failed(error: Exception) -> None:
        complain(error)
        leave(OWN_ERROR)

    try:
        import torch

        from steadygrad.forecasting.watch import FirstSteps

        # Fused attention has no second derivative: the curvature could not be measured.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)

        watcher = FirstSteps(steps, enough, failed=failed)
        watcher.joinpoints.install(all_optimizers=True)
    except Exception as error:  # noqa: BLE001 - without us the script would train to its end
        failed(error)

    def at_exit() -> None:
        """The script has ended by itself: registered before any handler of its own, so called after them."""
        if watcher.steps and os.getpid() == process:
            try:
                write(watcher.forecast(), stopped=False)
            except Exception as error:  # noqa: BLE001 - the exit code stays the script's
                complain(error)

    process = os.getpid()
    atexit.register(at_exit)


def complain(error: Exception) -> None:
    """Say in a child that something of ours has failed, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    print(f"steadygrad had an error of its own ({type(error).__name__}: {error}, {where})", file=sys.stderr)


def leave(code: int) -> NoReturn:
    """End this process and those that it has started, data loaders' among them, without another line of the script."""
    try:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or nobody reads it any longer
                stream.flush()
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()  # at once: a worker that hangs would hold our output open
    finally:  # torch raises where a loader's worker ends
        os._exit(code)
