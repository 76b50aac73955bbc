"""The other end of :mod:`steadygrad.integrations.arms`: one training, in a process of its own, told to files."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import signal
import sys
import time
import traceback
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from steadygrad.integrations.check import OWN_ERROR, complain, leave
from steadygrad.integrations.overlay import Overlay
from steadygrad.integrations.patched import import_patched, take_over_main
from steadygrad.integrations.scratch import Scratch
from steadygrad.integrations.seeds import Seeds

PR_SET_PDEATHSIG = 1
PROGRESS_EVERY = 0.5  # seconds
DIVERTING = tuple(str(Path(__file__).with_name(name)) for name in ("scratch.py", "overlay.py"))


class ArmProcess:
    """What an arm does to its process. A failure of ours ends it: an unchanged run must not be taken for a changed one.

    Args:
        folder: of the arm, with the file ``request.json`` that :class:`~steadygrad.integrations.arms.ArmRunner` wrote.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._request: dict[str, Any] = json.loads(self._path("request.json").read_text(encoding="utf-8"))
        self._seeds = Seeds(self._request["seed_offset"])
        self._scratch: Scratch | None = None

    def begin(self) -> None:
        """At the interpreter's start."""
        try:
            if os.getppid() == self._request["parent"]:
                _die_with_parent()
            self._seeds.before_the_script()
            if self._request["scratch"]:
                overlay = Overlay(folder=self._request["overlay"], **self._request["scratch"])
                files = frozenset(self._request["patched"])
                take_over_main(overlay, files)
                if files:
                    import_patched(overlay, files)
                self._scratch = Scratch(overlay)
                self._scratch.install()
                sys.excepthook = _show
        except Exception as error:  # noqa: BLE001 - the script must not write to the user's files
            self._failed(error)

    def train(self) -> None:
        """When torch has been imported: put the plan in force.

        The report is written when the script ends, or when the trial has ended before it: then the process ends as
        well, without the script's ``finally`` blocks and exit handlers, which would save what has not been trained.
        """
        try:
            from steadygrad.integrations.trial import Trial

            if self._scratch is not None:
                self._scratch.torch_is_there()
            self._seeds.torch_is_there()
            if self._request["resume_from"] is not None:
                from steadygrad.integrations.resume import Resume

                Resume(self._request["resume_from"], failed=self._failed)
        except Exception as error:  # noqa: BLE001
            self._failed(error)

        arm = self
        progress = self._path(f"progress-{os.environ.get('RANK', '0')}.jsonl").open("a", encoding="utf-8")

        class Told(Trial):
            """A trial that says how far it is."""

            told = 0.0

            def after_step(self, optimizer: Any, applied: bool) -> None:
                super().after_step(optimizer, applied)
                now = time.monotonic()
                if now - self.told >= PROGRESS_EVERY:
                    self.told = now
                    loss = self._losses[-1] if self._losses else None
                    line = {
                        "step": self.steps,
                        "loss": loss if loss is None or math.isfinite(loss) else str(loss),
                    }
                    progress.write(json.dumps(line) + "\n")
                    progress.flush()

            @property
            def fingerprint(self) -> str:
                return fingerprint(self._losses)

        def write() -> None:
            from steadygrad.trace.jsontext import dumps  # loads numpy: not in a process that never trains

            report = trial.report()
            if report is None:
                return
            found = {
                "report": report.to_json(),
                "fingerprint": trial.fingerprint,
                "seeds_shifted": arm._seeds.shifted,
            }
            path = arm._path(f"report-{os.environ.get('RANK', '0')}-{os.getpid()}.json")
            part = path.with_suffix(".part")
            part.write_text(dumps(found), encoding="utf-8")
            os.replace(part, path)

        def at_end() -> None:
            try:
                write()
            except Exception as error:  # noqa: BLE001 - without us the script would train to its end
                arm._failed(error)
            leave(0)

        try:
            plan: Mapping[str, Any] = self._request["plan"]
            trial = Told(
                plan,
                survey=self._request["survey"],
                failed=self._failed,
                steps=self._request["steps"],
                at_end=at_end,
            )
            trial.install()
        except Exception as error:  # noqa: BLE001
            self._failed(error)

        def at_exit() -> None:
            """The script has ended by itself: registered before any handler of its own, so called after them."""
            if os.getpid() == process:
                try:
                    trial.close()
                    write()
                except Exception as error:  # noqa: BLE001
                    complain(error)
                    sys.stderr.flush()

        process = os.getpid()
        atexit.register(at_exit)

    def _failed(self, error: Exception) -> NoReturn:
        known = sys.modules.get(
            "steadygrad.repair.effects.effect"
        )  # it loads torch, which may not be there yet
        applicable = known is None or not isinstance(error, known.NotApplicable)
        note = {
            "applicable": applicable,
            "text": str(error) if not applicable else f"{type(error).__name__}: {error}",
        }
        self._path("note.json").write_text(json.dumps(note), encoding="utf-8")
        if applicable:
            complain(error)
        leave(OWN_ERROR)

    def _path(self, name: str) -> Path:
        return self._folder / name


def _die_with_parent() -> None:
    """If the parent is killed, nobody is left to end us, nor to clear up the scratch folder (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def fingerprint(losses: array[float]) -> str:
    """A hash of every bit of a loss curve; two NaNs are the same. "" for none.

    Example:
        >>> fingerprint(array("d", [1.0, 2.0])) == fingerprint(array("d", [1.0, 2.0000000000000004]))
        False
    """
    if not losses:
        return ""
    same = array("d", (loss if loss == loss else math.nan for loss in losses))
    return hashlib.sha256(same.tobytes()).hexdigest()[:16]


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The interpreter's own way, without the frames of what diverts files: the script knows nothing of them."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        frames = []
        trace = one.__traceback__
        while trace is not None:
            frames.append(trace)
            trace = trace.tb_next
        while frames and frames[-1].tb_frame.f_code.co_filename in DIVERTING:
            frames.pop()
        if frames:
            frames[-1].tb_next = None
        one = one.__cause__ or one.__context__
    traceback.print_exception(kind, error, error.__traceback__)
