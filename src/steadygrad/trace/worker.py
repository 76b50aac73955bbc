"""The thread that writes, and what a fork does to it.

SQLite must not be carried across a fork, not even to be closed in the child. So before a fork the file is closed
and the thread ends; in the parent both come back with the next record, in the child nothing is left to misuse.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steadygrad.trace.backlog import Backlog
from steadygrad.trace.columns import Columns
from steadygrad.trace.lock import TraceInUse
from steadygrad.trace.pump import Limits, Pump
from steadygrad.trace.store import Busy

_FORK_SECONDS = 2.0  # a fork waits so long for a write in progress
_LAST_TRIES = 10  # to write the rest while somebody holds the file, half a second each


class Worker:
    """Empties ``backlog`` into the file, at the latest every ``flush_seconds``, and whenever it is woken.

    ``mutex`` guards the backlog and the columns; :meth:`start` and :meth:`wake` are called holding it.

    Raises:
        TraceInUse: another writer has the file. All other failures go to ``on_failure``.
    """

    def __init__(
        self,
        path: Path,
        mutex: threading.RLock,  # type: ignore[valid-type] # a function until Python 3.13
        backlog: Backlog,
        columns: Columns,
        meta: str,
        limits: Limits,
        on_failure: Callable[[BaseException], None] | None,
    ) -> None:
        self._state, self._backlog, self._columns = threading.Condition(mutex), backlog, columns
        self._flush_seconds, self._on_failure = limits.flush_seconds, on_failure
        self.failed: BaseException | None = None
        self._closed = False
        self._asked = self._done = 0  # flushes
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._forks = 0  # under way
        self._pump: Pump | None = None
        self.session = 1
        try:
            self._pump = Pump(path, meta, limits, self._find)
            self.session = self._pump.session
            self._pump.write({})
        except TraceInUse:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever the disk does, training goes on without a trace
            if self._pump is None or not isinstance(exc, Busy):  # a file that is only held is tried again
                self._fail(exc)
        if self.live:
            _workers.add(self)

    @property
    def live(self) -> bool:
        return self.failed is None and not self._closed

    def lost(self) -> dict[str, int]:
        return (
            self._pump.lost(self._backlog.dropped) if self._pump is not None else dict(self._backlog.dropped)
        )

    def start(self) -> None:
        """Start the thread if it does not run: with the first record, and after a fork."""
        if self._thread is not None or self._forks:
            return
        thread = threading.Thread(target=self._run, name="steadygrad-trace", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is going down; close() writes the rest itself
            return
        self._thread = thread

    def wake(self) -> None:
        """Have the thread write now."""
        self.start()
        self._woken.set()

    def flush(self, timeout: float) -> bool:
        """Wait until what is queued is on disk."""
        with self._state:
            if not self.live:
                return self.failed is None
            self._asked += 1
            ticket = self._asked
            self.wake()
            self._state.wait_for(lambda: self._done >= ticket or self.failed is not None, timeout)
            return self._done >= ticket and self.failed is None

    def close(self, timeout: float) -> None:
        """Write the rest and the end mark. Waits ``timeout`` seconds for the disk."""
        with self._state:
            if self.live:
                self._closed = True
                self.wake()
                if self._thread is None:
                    self._run()  # too late in the interpreter's life for a thread
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._state:
                ending = self._closed
            if not ending:
                self._woken.wait(self._flush_seconds)
            self._woken.clear()
            with self._state:
                ending = self._closed  # read before the queue is emptied: nothing may come after the end mark
                if self._forks and not ending:
                    self._thread = None
                    return
            if ending:
                self._end()
            elif self.failed is None:
                self._write()
            if ending or self.failed is not None:
                return

    def _end(self) -> None:
        for _ in range(_LAST_TRIES):
            if self._write(ending=True) or self.failed is not None:
                break
        self._let_go()

    def _write(self, ending: bool = False) -> bool:
        """Empty the queue into the file. False: not all of it, as somebody holds the file."""
        with self._state:
            ticket = self._asked
            taken = self._backlog.take()
            lost = dict(self._backlog.dropped)
        assert self._pump is not None
        try:
            self._pump.take(*taken)
            self._pump.write(lost, ending=ending)
        except Busy:
            return False  # the rest is tried next time
        except Exception as exc:  # noqa: BLE001 - the disk, or our own mistake: training goes on without a trace
            self._fail(exc)
            return False
        with self._state:
            self._done = ticket
            self._state.notify_all()
        return True

    def _find(self, kind: str, optimizer: int, ids: Sequence[Any] | np.ndarray) -> npt.NDArray[np.int64]:
        with self._state:
            return self._columns.find(kind, optimizer, ids)

    def _fail(self, exc: BaseException) -> None:
        with self._state:
            self.failed = exc
            self._backlog.clear()
        self._let_go()
        if self._on_failure is not None:
            try:
                self._on_failure(exc)
            except Exception:  # noqa: BLE001 - a failing report of a failure must not reach training
                pass
        with self._state:
            self._state.notify_all()

    def _let_go(self) -> None:
        _workers.discard(self)
        if self._pump is not None:
            try:
                self._pump.let_go()
            except Exception:  # noqa: BLE001 - nothing more can be done for a file that does not close
                pass

    def before_fork(self) -> None:
        with self._state:
            self._forks += 1
            thread = self._thread
            self._woken.set()
        if thread is threading.current_thread() or self._pump is None:
            return
        if thread is not None:
            thread.join(_FORK_SECONDS)
            if thread.is_alive():
                return  # a disk that hangs
        self._pump.pause()

    def after_fork_in_parent(self) -> None:
        with self._state:
            self._forks = max(self._forks - 1, 0)  # 0 if we came to be between the two hooks
            if self.live and not self._backlog.empty:
                self.start()

    def after_fork_in_child(self) -> None:
        if self._pump is None:
            return
        if (
            not self._pump.paused
        ):  # the disk hung: never let the copy be collected, that would write to the file
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._pump))
        self._pump.forget()


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _for_each(what: Callable[[Worker], None]) -> Callable[[], None]:
    def hook() -> None:
        for worker in list(_workers):
            what(worker)

    return hook


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_for_each(Worker.before_fork),
        after_in_parent=_for_each(Worker.after_fork_in_parent),
        after_in_child=_for_each(Worker.after_fork_in_child),
    )
