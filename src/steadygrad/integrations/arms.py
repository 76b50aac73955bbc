"""Run a script's training several times over, each time in a process of its own with something changed: the arms.

The arms run in the user's working directory, but what they write goes to a scratch folder (see
:mod:`steadygrad.integrations.scratch`), and is gone in the end. They get the same seeds (see
:mod:`steadygrad.integrations.seeds`).
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadygrad.diagnose.trial import TrialReport
from steadygrad.integrations.check import OWN_ERROR, command_of
from steadygrad.integrations.children import Children, Ended, Log, NotBegun
from steadygrad.integrations.launcher import with_site_hook
from steadygrad.integrations.overlay import Overlay, shared_folders, temporary_folders
from steadygrad.integrations.patched import put_in_place
from steadygrad.integrations.script import Target

PATIENCE = 5.0  # an arm may take so many times as long as the first run, for each run at once
GRACE = 60.0  # and so many seconds more
SHORT = 40  # characters of a folder under which the sockets of loader workers still fit into 107


@dataclass(frozen=True)
class ArmRequest:
    """One training that is wanted."""

    plan: Mapping[str, Any] = field(default_factory=dict)  # what is changed; empty: nothing
    seed_offset: int = 0  # k > 0: the script's own seeds become s + 1000 k, and so do ours
    steps: int | None = None  # it is ended after so many optimizer steps; None: by itself
    survey: bool = False  # surveyors look on
    eager: bool = False  # torch.compile does nothing
    patched: Mapping[str, str] = field(default_factory=dict)  # path of a script or module -> its new text
    resume_from: str | None = None  # run directory whose newest good snapshot it begins with


@dataclass(frozen=True)
class ArmResult:
    """What came of it."""

    report: TrialReport | None
    exit_code: int | None = None  # of the command; negative: a signal; None: we ended it, or never began it
    seconds: float = 0.0
    stdout_tail: str = ""
    stderr_tail: str = ""
    note: str = ""  # why there is no report, or what is to be known of it
    files_written: tuple[
        str, ...
    ] = ()  # as the script named them; they were in the scratch folder, and are gone
    escaped: tuple[str, ...] = ()  # written past the scratch folder: the user's own files
    timed_out: bool = False
    not_applicable: bool = False  # the change cannot be made to this script; ``note`` says why
    fingerprint: str = (
        ""  # of the whole loss curve: equal for two runs whose losses are equal to the last bit
    )
    seeds_shifted: int = 0  # calls of the script whose seed the offset has changed

    @property
    def user_error(self) -> bool:
        """Whether the script has ended with an error of its own; there may be a report all the same."""
        return self.exit_code not in (0, None, OWN_ERROR)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or another signal has ended the arms. All of them are dead."""

    def __init__(self, number: int, results: Sequence[ArmResult | None]) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.results = tuple(results)  # of the requests under way, None for those without one


Told = Callable[[int, int, "float | None"], None]


def tell_nobody(*_: object) -> None: ...


class Runner(ABC):
    """Runs arms, as a ``with`` block.

    Args:
        jobs: arms at once, at least 1.
        timeout: as of an :class:`ArmRunner`.
    """

    def __init__(self, jobs: int, timeout: float | None) -> None:
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        self._jobs, self._timeout = jobs, timeout
        self._took: dict[int | None, float] = {}  # steps that were asked for -> seconds of the first such arm
        self._open = ExitStack()

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def limit(self, request: ArmRequest) -> float | None:
        """Seconds that this arm may take from now on; None: any."""
        return time_limit(self._timeout, self._took, request, self._jobs)

    def run(self, request: ArmRequest, told: Callable[[int, float | None], None] = tell_nobody) -> ArmResult:
        """Run one arm; ``told`` is called with its step and loss, at most twice a second.

        Raises:
            OSError: the command cannot be started.
            Interrupted: by Ctrl-C and the like.
        """
        return self.run_all([request], lambda _, step, loss: told(step, loss))[0]

    @abstractmethod
    def run_all(
        self,
        requests: Sequence[ArmRequest],
        told: Told = tell_nobody,
        begun: Callable[[int], None] = tell_nobody,
        finished: Callable[[int, ArmResult], None] = tell_nobody,
    ) -> list[ArmResult]:
        """Run several arms, ``jobs`` of them at once.

        Args:
            requests: in the order in which they begin.
            told: called with the position of a request, its step and its loss (None: not seen; may be NaN), at most
                twice a second for each; one at a time.
            begun: called with the position of a request when it begins, likewise.
            finished: called with the position of a request and its result, likewise.

        Raises:
            OSError: the command cannot be started.
            Interrupted: by Ctrl-C and the like; it has the results that there are.
        """


@contextmanager
def ended_by(end: Callable[[], None], results: Sequence[ArmResult | None]) -> Iterator[None]:
    """What goes wrong inside ends the arms by ``end``; Ctrl-C and the like are Interrupted, with these results."""
    try:
        yield
    except KeyboardInterrupt as error:
        end()
        number = error.number if isinstance(error, Ended) else signal.SIGINT
        raise Interrupted(number, results) from None
    except BaseException:
        end()
        raise


class ArmRunner(Runner):
    """Runs arms on this machine. None of their processes outlives the ``with`` block.

    Args:
        words: the command, or the script with its arguments.
        target: the script or module among them; None if the words are another command.
        jobs: arms at once, at least 1.
        timeout: seconds that an arm may take; None: any for the first one with a report, and for later ones that take
            no more steps a minute and, for each of the ``jobs``, five times what the first one took.
        scratch: keep the user's files from harm (not on Windows).
        environ: the variables that the command gets; None: those of this process.
    """

    def __init__(
        self,
        words: Sequence[str],
        target: Target | None,
        *,
        jobs: int = 2,
        timeout: float | None = None,
        scratch: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(jobs, timeout)
        self._command = command_of(words, target)
        self._scratch = scratch and os.name == "posix"
        self._environ = os.environ if environ is None else environ
        self._children = Children()
        self._folder = Path()
        self._telling = threading.Lock()

    def __enter__(self) -> ArmRunner:
        self._folder = Path(tempfile.mkdtemp(prefix="steadygrad-", dir=_short_folder()))
        self._open.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._open.enter_context(self._children)
        return self

    def run_all(
        self,
        requests: Sequence[ArmRequest],
        told: Told = tell_nobody,
        begun: Callable[[int], None] = tell_nobody,
        finished: Callable[[int, ArmResult], None] = tell_nobody,
    ) -> list[ArmResult]:
        """As :meth:`Runner.run_all`. The calls come from other threads."""
        results: list[ArmResult | None] = [None] * len(requests)

        def one(index: int) -> None:
            def tell(step: int, loss: float | None) -> None:
                with self._telling:
                    told(index, step, loss)

            with self._telling:
                begun(index)
            result = self._run(requests[index], tell)
            results[index] = result
            with self._telling:
                finished(index, result)

        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="steadygrad-arm")
        try:
            with ended_by(self._children.kill, results):
                waiting: set[Future[None]] = {pool.submit(one, index) for index in range(len(requests))}
                while waiting:  # with a time limit, or Windows would not let Ctrl-C through
                    done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return [result for result in results if result is not None]

    # ------------------------------------------------------------------ one arm, in a thread
    def _run(self, request: ArmRequest, tell: Callable[[int, float | None], None]) -> ArmResult:
        folder = Path(tempfile.mkdtemp(prefix="", dir=self._folder))
        arm = _Arm(folder, request, scratch=self._scratch, tell=tell)
        limit = self.limit(request)
        began = time.monotonic()
        try:
            code = self._children.run(
                self._command,
                arm.environment(self._environ),
                stdout=arm.stdout,
                stderr=arm.stderr,
                mark=str(folder),
                timeout=limit,
                pulse=arm.look,
            )
        except NotBegun:
            return ArmResult(None, note="it was not begun")
        else:
            seconds = time.monotonic() - began
            arm.look()
            result = arm.result(code, seconds, limit)
            if result.report is not None:
                self._took.setdefault(request.steps, seconds)
            return result
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Arm:
    """The folder of one arm: what its process is told, and what it tells."""

    def __init__(
        self, folder: Path, request: ArmRequest, *, scratch: bool, tell: Callable[[int, float | None], None]
    ) -> None:
        self._folder, self._request, self._tell = folder, request, tell
        self._read: dict[Path, int] = {}  # bytes of each progress file that have been told
        self.stdout, self.stderr = Log(folder / "stdout"), Log(folder / "stderr")
        self._tmp = folder / "t"
        self._tmp.mkdir()
        self._overlay: Overlay | None = None
        self._patched: list[str] = []
        places: dict[str, Any] = {}
        if scratch:
            (folder / "o").mkdir()
            places = {
                "work": os.getcwd(),
                "shared": [*shared_folders(os.environ), str(folder)],
                "temporary": temporary_folders(),
            }
            self._overlay = Overlay(str(folder / "o"), **places)
            self._patched = put_in_place(self._overlay, dict(request.patched))
        elif request.patched:
            raise ValueError("a patched script needs scratch=True")
        told = {
            "plan": dict(request.plan),
            "seed_offset": request.seed_offset,
            "steps": request.steps,
            "survey": request.survey,
            "parent": os.getpid(),
            "resume_from": request.resume_from and os.path.abspath(request.resume_from),
            "scratch": places,
            "overlay": str(folder / "o"),
            "patched": self._patched,
        }
        (folder / "request.json").write_text(json.dumps(told), encoding="utf-8")

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that carry us into every Python process under the command."""
        more = {"PYTHONHASHSEED": environ.get("PYTHONHASHSEED", "0")}
        if self._request.eager:
            more["TORCH_COMPILE_DISABLE"] = "1"
        if self._overlay is not None:
            kernels = os.path.join(
                tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"
            )  # torch's default
            more |= {name: str(self._tmp) for name in ("TMPDIR", "TEMP", "TMP")}
            more |= {"PYTHONDONTWRITEBYTECODE": "1"}
            more |= {"TORCHINDUCTOR_CACHE_DIR": environ.get("TORCHINDUCTOR_CACHE_DIR", kernels)}
        return {**with_site_hook(environ, {"arm": {"folder": str(self._folder)}}), **more}

    def look(self) -> None:
        """Tell what is new."""
        for path in sorted(self._folder.glob("progress-*.jsonl"))[:1]:  # of rank 0
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                said = json.loads(line)
                self._tell(said["step"], None if said["loss"] is None else float(said["loss"]))

    def result(self, code: int | None, seconds: float, limit: float | None) -> ArmResult:
        """What the process has left behind."""
        report, more = self._report()
        note, not_applicable = self._note(code, limit) if report is None else ("", False)
        if report is not None and self._request.seed_offset and not more["seeds_shifted"]:
            note = "the script seeds nothing itself: what it draws from unseeded generators was drawn anew"
        written: set[str] = set(self._overlay.written()) if self._overlay is not None else set()
        return ArmResult(
            report,
            code,
            seconds,
            self.stdout.tail(),
            self.stderr.tail(),
            note,
            tuple(sorted(written - set(self._patched))),
            tuple(_lines(self._folder / "o" / "escaped")),
            timed_out=code is None,
            not_applicable=not_applicable,
            **more,
        )

    def _report(self) -> tuple[TrialReport | None, dict[str, Any]]:
        for path in sorted(self._folder.glob("report-*.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            return TrialReport.of_json(data.pop("report")), data
        return None, {}

    def _note(self, code: int | None, limit: float | None) -> tuple[str, bool]:
        """Why there is no report."""
        if (self._folder / "note.json").exists():
            said = json.loads((self._folder / "note.json").read_text(encoding="utf-8"))
            if said["applicable"]:
                return f"steadygrad had an error of its own ({said['text']})", False
            return str(said["text"]), True
        if code is None:
            return f"it was still going after {limit:.0f} s", False
        if any(self._read.values()):
            return f"it ended without a word after it had begun to train (exit code {code})", False
        return f"it took no optimizer step (exit code {code})", False


def time_limit(
    timeout: float | None, took: Mapping[int | None, float], request: ArmRequest, jobs: int
) -> float | None:
    """Seconds that an arm may take: what was asked for, or what the first one of its length makes likely."""
    first = took.get(request.steps, took.get(None))
    if timeout is not None or first is None:
        return timeout
    return GRACE + PATIENCE * jobs * first


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return sorted(set(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()))


def _short_folder() -> str:
    """A temp folder whose path leaves room for the names of sockets."""
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    for folder in folders:
        if len(os.fsencode(folder)) <= SHORT and os.path.isdir(folder) and os.access(folder, os.W_OK):
            return folder
    return folders[0]
