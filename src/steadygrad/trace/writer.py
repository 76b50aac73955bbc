"""Write the trace of one process: the calls only queue, a daemon thread encodes and writes."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from steadygrad.records import Action, Cause, Finding, ParamInfo, Severity, StepStats
from steadygrad.trace.backlog import Backlog
from steadygrad.trace.codec import ABSENT
from steadygrad.trace.columns import Columns
from steadygrad.trace.jsontext import dumps
from steadygrad.trace.lock import TraceInUse as TraceInUse
from steadygrad.trace.pump import Limits
from steadygrad.trace.schema import MAX_ATTEMPTS, MODULE, PARAM, clean_name
from steadygrad.trace.waiting import Detail, Exact, Whole
from steadygrad.trace.worker import Worker


class TraceWriter:
    """Append what happens in one process to one SQLite file.

    No method raises for a full, slow, read-only or vanished disk. A slow disk costs the oldest per-tensor detail,
    which is counted in ``dropped``; on any other failure writing stops for good, ``failed`` holds the reason and
    ``on_failure`` is called once. In a forked child every call does nothing. All methods may be called from any
    thread, but the steps of one optimizer must come in order: one that goes back opens a new attempt, as does
    opening a file that exists.

    Args:
        path: the file, usually :func:`steadygrad.trace.rundir.trace_path`. Its directory must exist.
        meta: facts about the run, anything that JSON can hold; ``rank`` tells the processes of a run apart.
        block_steps: steps after which the thread writes, >= 1.
        flush_seconds: seconds after which it writes at the latest, > 0. An alarm is written at once.
        max_bytes: bound of the file, >= 1 MB. Beyond it old steps are stored coarser (``thin.py``).
        queue_bytes: bound of the memory for detail that waits for a slow disk, >= 0.
        on_failure: called with the exception, from the writing thread (from here, if the file cannot be opened).

    Raises:
        ValueError: an argument is out of its range.
        TraceInUse: another writer has this file.

    Non-finite values are stored as such. Scalars are exact; per-tensor values have 16 bits (``codec.py``).

    Example:
        >>> import tempfile
        >>> from steadygrad.trace.reader import Run
        >>> path = Path(tempfile.mkdtemp()) / "trace-0.sqlite"
        >>> with TraceWriter(path, {"script": "train.py"}) as writer:
        ...     writer.declare([ParamInfo(0, "w", (2, 2), "float32", 0, "", "Linear")])
        ...     writer.scalars(0, 0, {"loss": 2.5})
        ...     writer.row("grad_norm", 0, 0, np.array([1.0]))
        >>> Run(path).scalar("loss")
        (array([0]), array([2.5]))
        >>> Run(path).series("grad_norm", "w")
        (array([0]), array([1.]))
    """

    def __init__(
        self,
        path: Path | str,
        meta: Mapping[str, Any],
        *,
        block_steps: int = 100,
        flush_seconds: float = 1.0,
        max_bytes: int = 512_000_000,
        queue_bytes: int = 64_000_000,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        if block_steps < 1:
            raise ValueError(f"block_steps must be at least 1, got {block_steps}")
        if not flush_seconds > 0:
            raise ValueError(f"flush_seconds must be positive, got {flush_seconds}")
        if max_bytes < 1_000_000:
            raise ValueError(f"max_bytes must be at least 1000000, got {max_bytes}")
        if queue_bytes < 0:
            raise ValueError(f"queue_bytes must be at least 0, got {queue_bytes}")
        self.path = Path(path).absolute()
        self._meta = dict(meta)
        self._block_steps = block_steps
        self._pid = os.getpid()
        self._mutex = threading.RLock()  # a signal handler may call in while we hold it
        self._backlog = Backlog(queue_bytes)
        self._columns = Columns()
        self._last_step: dict[int, int] = {}  # of each optimizer
        self._window = (0, -1)  # optimizer and step last seen
        self._steps = 0  # seen since the thread was last woken
        limits = Limits(block_steps, flush_seconds, max_bytes, queue_bytes)
        self._worker = Worker(
            self.path, self._mutex, self._backlog, self._columns, dumps(self._meta), limits, on_failure
        )
        self._attempt = self._session = self._worker.session
        if self._live():
            atexit.register(self.close)

    @property
    def failed(self) -> BaseException | None:
        """Why writing stopped; None while it works."""
        return self._worker.failed

    @property
    def dropped(self) -> Mapping[str, int]:
        """What was lost so far: rows, scalars, events (slow disk), thinned (bound), signals, unknown, attempts."""
        with self._mutex:
            return self._worker.lost()

    def declare(self, infos: Sequence[ParamInfo]) -> None:
        """Name the parameters; call it again when some were added or renamed.

        The i-th parameter declared for an optimizer is column i of its rows, and ``ParamInfo.index`` is its id in
        :meth:`sparse`.
        """
        with self._mutex:
            if self._live():
                for row in self._columns.declare_params(infos):
                    self._backlog.put_row("entity", (self._session, *row))

    def declare_modules(self, names_and_types: Mapping[str, str]) -> None:
        """Name the modules whose outputs are measured; call it again when some were added."""
        with self._mutex:
            if self._live():
                for row in self._columns.declare_modules(names_and_types):
                    self._backlog.put_row("entity", (self._session, *row))

    def step(self, stats: StepStats) -> None:
        """Record all that one step record holds; ``signals.py`` says under which names.

        The record is only queued, not copied: its arrays may not be changed afterwards. A step lower than the last
        one of this optimizer opens a new attempt.
        """
        if stats.portrait is not None:  # not stored; it would only be kept alive
            stats = replace(stats, portrait=None)
        with self._mutex:
            if not self._live():
                return
            if stats.activations:
                self.declare_modules({a.module: a.module_type for a in stats.activations})
            if self._in_order(stats.optimizer, stats.step):
                self._backlog.put_whole(Whole(self._attempt, stats))
                self._count(stats.optimizer, stats.step)

    def scalars(self, optimizer: int, step: int, values: Mapping[str, float]) -> None:
        """Record exact numbers of one step. A step lower than the last one of this optimizer opens a new attempt."""
        kept = {clean_name(key): float(value) for key, value in values.items()}
        with self._mutex:
            if self._live() and self._in_order(int(optimizer), int(step)):
                self._backlog.put_exact(Exact(self._attempt, int(optimizer), int(step), kept))
                self._count(int(optimizer), int(step))

    def row(
        self, stat: str, optimizer: int, step: int, values: np.ndarray, *, measured: np.ndarray | None = None
    ) -> None:
        """Record a signal of every parameter of an optimizer.

        Args:
            values: one per declared parameter, >= 0; copied. nan and inf are values.
            measured: bool, False where there is no value (no gradient, not this step's turn). None: all have one.
        """
        kept = _floats(values)
        if measured is not None:
            kept[~np.asarray(measured, dtype=bool)] = ABSENT
        self._put(PARAM, stat, optimizer, step, None, kept)

    def sparse(
        self,
        stat: str,
        optimizer: int,
        step: int,
        ids: Sequence[int] | np.ndarray,
        values: Sequence[float] | np.ndarray,
    ) -> None:
        """Record a signal of some parameters: ``ids`` are their ``ParamInfo.index``; unknown ones are counted."""
        self._sparse(PARAM, stat, optimizer, step, ids, values)

    def sparse_modules(
        self, stat: str, optimizer: int, step: int, names: Sequence[str], values: Sequence[float] | np.ndarray
    ) -> None:
        """Record a signal of some modules, by their declared names; unknown ones are counted."""
        self._sparse(MODULE, stat, optimizer, step, names, values)

    def event(
        self,
        kind: str,
        step: int,
        payload: Mapping[str, Any],
        *,
        optimizer: int = 0,
        severity: Severity = "info",
        where: str = "",
    ) -> None:
        """Record that something happened. ``payload`` is anything that JSON can hold. An alarm is written at once."""
        try:
            text = dumps(payload)
        except Exception as exc:  # noqa: BLE001 - the str() of a stranger's object may do anything
            text = dumps({"unreadable": type(exc).__name__})
        with self._mutex:
            if not self._live():
                return
            fields = clean_name(kind), clean_name(severity), clean_name(where), text
            self._backlog.put_row("event", (self._attempt, int(optimizer), int(step), *fields))
            if severity == "alarm":
                self._worker.wake()

    def finding(self, finding: Finding) -> None:
        """Record a finding."""
        f = finding
        self.event("finding", f.step, f.to_json(), optimizer=f.optimizer, severity=f.severity, where=f.where)

    def action(self, action: Action) -> None:
        """Record what the guard did."""
        self.event("action", action.step, action.to_json(), optimizer=action.optimizer, severity="warning")

    def causes(self, step: int, ranking: Sequence[Cause]) -> None:
        """Record a ranking of causes; the reader gives the newest one."""
        for place, cause in enumerate(ranking):
            self.event("cause", step, {**cause.to_json(), "place": place}, where=cause.where)

    def meta_update(self, mapping: Mapping[str, Any]) -> None:
        """Add facts about the run, or change them."""
        with self._mutex:
            if self._live():
                self._meta.update(mapping)
                self._backlog.put_row("meta", (dumps(self._meta),))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was given so far is in the file. False: it is not, after ``timeout`` seconds."""
        return os.getpid() == self._pid and self._worker.flush(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Write the rest and the end mark, and let the file go. Runs at interpreter exit too. Again: does nothing."""
        if os.getpid() == self._pid:
            atexit.unregister(self.close)
            self._worker.close(timeout)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _live(self) -> bool:
        return self._worker.live and os.getpid() == self._pid

    def _sparse(
        self, kind: str, stat: str, optimizer: int, step: int, ids: Sequence[Any] | np.ndarray, values: Any
    ) -> None:
        kept = _floats(values)
        with self._mutex:
            columns = self._columns.find(kind, int(optimizer), ids)
            declared = columns >= 0
            if not declared.all():
                self._backlog.dropped["unknown"] += int((~declared).sum())
                kept, columns = kept[declared], columns[declared]
        self._put(kind, stat, optimizer, step, columns.astype(np.uint32), kept)

    def _put(
        self, kind: str, stat: str, optimizer: int, step: int, columns: np.ndarray | None, values: np.ndarray
    ) -> None:
        with self._mutex:
            if self._live() and len(values):
                name = clean_name(stat)
                self._backlog.put_detail(
                    Detail(self._attempt, int(optimizer), kind, name, int(step), columns, values)
                )
                self._count(int(optimizer), int(step))

    def _in_order(self, optimizer: int, step: int) -> bool:
        """Open a new attempt if the step goes back. False when there were too many of them."""
        if step < self._last_step.get(optimizer, step):
            if self._attempt - self._session >= MAX_ATTEMPTS:
                self._backlog.dropped["attempts"] += 1
                return False
            self._attempt += 1
            self._last_step.clear()
            self._backlog.put_row("attempt", (self._attempt, time.time()))
        self._last_step[optimizer] = step
        return True

    def _count(self, optimizer: int, step: int) -> None:
        """Wake the thread when enough steps came together."""
        if (optimizer, step) == self._window:
            return
        self._window = optimizer, step
        self._steps += 1
        if self._steps >= self._block_steps:
            self._steps = 0
            self._worker.wake()
        else:
            self._worker.start()


def _floats(values: Any) -> np.ndarray:
    """A copy in float32 or float64."""
    array = np.array(values)
    if array.dtype.kind == "f" and array.dtype.itemsize >= 4:
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)
