"""Child processes none of which is left, whatever ends the parent's work: an error, a time-out, Ctrl-C, SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PULSE = 0.2  # seconds between looks at a child
ROUNDS = 20  # looks for processes that are born while the others are being killed
LOG_LIMIT = 1 << 22  # bytes of output on disk, of which only the end is kept
TAIL = 4000  # bytes of output that are told


class NotBegun(Exception):
    """A child was to be started when all of them were already being ended."""


class Ended(KeyboardInterrupt):
    """This process was asked to end by the signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Log:
    """A file that a child writes its output to; however much it prints, little of it stays on the disk."""

    path: Path
    _end: bytes = field(default=b"", repr=False)

    def trim(self) -> None:
        """Begin anew if it has grown: the child appends, so it goes on at the new end."""
        with suppress(OSError):
            if self.path.stat().st_size > LOG_LIMIT:
                self._end = self._read()
                os.truncate(self.path, 0)

    def tail(self) -> str:
        """The last 4000 bytes, as text."""
        now = self._read()
        return (self._end + now)[-TAIL:].decode(errors="replace")

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                return file.read(TAIL)
        except OSError:
            return b""


class Children:
    """A ``with`` block that no child outlives, nor what the children have started.

    Inside it SIGTERM and SIGHUP raise :class:`Ended` in the main thread if the program has no handler of its own.
    """

    def __init__(self) -> None:
        self._living: dict[subprocess.Popen[bytes], str] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Children:
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
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: Log,
        stderr: Log,
        mark: str,
        timeout: float | None,
        pulse: Callable[[], None] = lambda: None,
    ) -> int | None:
        """Run a command to its end. To be called from any thread but the main one, which signals interrupt.

        Args:
            command: the words that start it; its standard input is empty.
            environment: all its variables.
            stdout, stderr: where its output goes.
            mark: a text that no other process has among its variables; what the child starts is known by it, also
                when it has left the child's process group, as torchrun's workers do (Linux).
            timeout: seconds; None: any time.
            pulse: called several times a second.

        Returns:
            The exit code as ``subprocess`` has it; None: it was killed, for its time was over.

        Raises:
            OSError: it cannot be started.
            NotBegun: :meth:`kill` has been called.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._closed:
                raise NotBegun
            with stdout.path.open("ab") as out, stderr.path.open("ab") as err:
                child = subprocess.Popen(
                    list(command),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,  # a group of its own, which is killed as one
                )
            self._living[child] = mark
        try:
            while True:
                try:
                    return child.wait(PULSE)
                except subprocess.TimeoutExpired:
                    pulse()
                    stdout.trim()
                    stderr.trim()
                    if until is not None and time.monotonic() > until:
                        return None
        finally:
            _kill(child, mark)
            stdout.trim()
            stderr.trim()
            with self._lock:
                self._living.pop(child, None)

    def kill(self) -> None:
        """End all of them and begin no more."""
        with self._lock:
            self._closed = True
            for child, mark in list(self._living.items()):
                _kill(child, mark)


def _kill(child: subprocess.Popen[bytes], mark: str) -> None:
    """End a child and what it has started; its loader workers may live on when it has ended itself."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()
    for _ in range(ROUNDS):
        strays = _marked(mark.encode())
        if not strays:
            return
        for pid in strays:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)  # they end in their own time


def _marked(mark: bytes) -> list[int]:
    """Processes, where the system lists them as Linux does, that were started with ``mark`` among their variables."""
    found = []
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    if mark in file.read():
                        found.append(int(name))
    return found


def _end_by(number: int, frame: FrameType | None) -> NoReturn:
    raise Ended(number)
