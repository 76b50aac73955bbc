"""Repeat a script with one thing changed, beside the unchanged twin: every run in a process of its own.

The runs take place in the user's folder: whatever the script writes there, each run writes again. They get the same
hash seed, and where the script seeds no generator, the same seeds; what it takes from the clock stays different.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from steadygrad.integrations.check import command_of
from steadygrad.integrations.launcher import with_site_hook
from steadygrad.integrations.script import Target

if TYPE_CHECKING:
    from steadygrad.diagnose.interventions import Intervention
    from steadygrad.integrations.investigation import Rerun, TrialReport

PATIENCE = 5.0  # an arm may take so many times as long as the twin, for each run at once
GRACE = 60.0  # and so many seconds more
TAIL = 2000  # characters of a script's own errors that are told


class NoReport(Exception):
    """A run came to nothing that can be judged; the message says why."""


def rerun_script(
    words: Sequence[str],
    target: Target | None,
    *,
    steps: int | None = None,
    jobs: int = 2,
    most: int = 4,
    timeout: float | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Rerun:
    """Find out why a script's training fails by repeating it.

    Args:
        words: the command, or the script with its arguments.
        target: the script or module among them; None if the words are another command.
        steps: optimizer steps of each run at most; it is ended there. None: until the script ends.
        jobs: runs at once, at least 1.
        most: changes that are tried at most.
        timeout: seconds that a run may take; None: any for the twin, five times the twin's and a minute for the others.
        told: called with a line when a run begins.

    Raises:
        NoReport: the unchanged script took no optimizer step, or too long.
        OSError: the command cannot be started.
    """
    from steadygrad.integrations.investigation import investigate  # loads numpy

    folder = Path(tempfile.mkdtemp(prefix="steadygrad-rerun-"))
    children = _Children()
    try:
        with children:
            run = _Runner(command_of(words, target), folder, steps, children)
            told("the unchanged script")
            began = time.monotonic()
            twin = run({}, timeout)
            limit = timeout or GRACE + PATIENCE * jobs * (time.monotonic() - began)

            def one(change: Intervention) -> tuple[TrialReport | None, str]:
                told(change.name)
                try:
                    return run(change.plan, limit), ""
                except NoReport as error:
                    return None, str(error)

            def run_arms(chosen: Sequence[Intervention]) -> list[tuple[TrialReport | None, str]]:
                with _pool(jobs, children) as pool:
                    return list(pool.map(one, chosen))

            return investigate(twin, run_arms, most=most)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Runner:
    """Runs the command under a plan, and reads what came of it."""

    def __init__(self, command: Sequence[str], folder: Path, steps: int | None, children: _Children) -> None:
        self._command, self._folder, self._steps = command, folder, steps
        self._children = children

    def __call__(self, plan: Mapping[str, float], timeout: float | None) -> TrialReport:
        from steadygrad.integrations.investigation import TrialReport

        folder = Path(tempfile.mkdtemp(dir=self._folder))
        settings = {"rerun": {"folder": str(folder), "plan": dict(plan), "steps": self._steps}}
        environment = _environment(os.environ, settings, eager="standardise_inputs" in plan)
        with (folder / "stderr").open("wb") as stderr:
            code = self._children.run(self._command, environment, stderr, timeout)
        if code is None:
            raise NoReport(f"it was still going after {timeout:.0f} s")
        found = sorted(folder.glob("trial-*.json"))
        if not found:
            said = (folder / "stderr").read_text(errors="backslashreplace").strip()[-TAIL:]
            raise NoReport(
                f"it took no optimizer step (exit code {code})" + (f". It said:\n{said}" if said else "")
            )
        return TrialReport.of_json(json.loads(found[0].read_text()))


def _environment(environ: Mapping[str, str], settings: Mapping[str, Any], *, eager: bool) -> dict[str, str]:
    """``eager``: hooks that change what a layer is given do not reach into compiled code."""
    more = {"PYTHONHASHSEED": environ.get("PYTHONHASHSEED", "0")}
    if eager:
        more["TORCH_COMPILE_DISABLE"] = "1"
    return {**with_site_hook(environ, settings), **more}


@contextmanager
def _pool(jobs: int, children: _Children) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for children; an exception kills the children, or leaving would wait for them."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        children.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Children:
    """Child processes, none of which outlives the ``with`` block, whatever ends it: an error, Ctrl-C, SIGTERM."""

    def __init__(self) -> None:
        self._living: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Children:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, _end_by)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], stderr: Any, timeout: float | None
    ) -> int | None:
        """Run a command to its end and return its exit code; None: it was killed, for its time was over."""
        with self._lock:
            if self._closed:
                raise NoReport("it was not begun")
            child = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # a group of its own, which is killed as one
            )
            self._living.add(child)
        try:
            return child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(child)
            self._living.discard(child)

    def kill(self) -> None:
        """End all of them and begin no more."""
        with self._lock:
            self._closed = True
            for child in list(self._living):
                _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started; its loader workers may live on when it has ended itself."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _end_by(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
