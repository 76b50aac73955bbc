"""The writing side of a trace: takes what was queued, makes blocks and rows of it, puts them into the file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from steadygrad.trace.assemble import BLOCK_BYTES, Assembler
from steadygrad.trace.gather import detail_chunks, exact_chunks
from steadygrad.trace.jsontext import dumps
from steadygrad.trace.lock import FileLock
from steadygrad.trace.schema import crc
from steadygrad.trace.signals import Find, Unfolding
from steadygrad.trace.store import Busy, Store
from steadygrad.trace.waiting import Detail, Exact, Whole

_TABLES = ("attempt", "entity", "block", "event")
_ENDED, _META, _LOST, _COUNTS = 2, 3, 4, 5  # places in a row of table attempt, after the id


class Limits(NamedTuple):
    """The settings of a writer; see :class:`steadygrad.trace.writer.TraceWriter`."""

    block_steps: int
    flush_seconds: float
    max_bytes: int
    queue_bytes: int


class Pump:
    """Open the file for writing. Used by one thread at a time.

    Args:
        find: gives the columns of parameters and modules.

    Raises:
        TraceInUse: another writer has the file.
        OSError, sqlite3.Error: it cannot be written.
    """

    def __init__(self, path: Path, meta: str, limits: Limits, find: Find) -> None:
        self._path, self._limits = path, limits
        self._unfolding = Unfolding(find)
        self._lock = FileLock(path)
        self._store: Store | None = None
        try:
            self._store = Store(path, limits.max_bytes)
            self._next = {table: self._store.next_id(table) for table in _TABLES}
        except BaseException:
            self.let_go()
            raise
        self.session = self._next["attempt"]
        self._assembler = Assembler(
            self._next["block"], limits.block_steps, min(BLOCK_BYTES, limits.max_bytes // 64)
        )
        # id -> its row without id and checksum
        self._attempts: dict[int, list] = {self.session: [self.session, time.time(), None, meta, "{}", "{}"]}
        self._written: dict[int, tuple] = {}  # id -> its row as it is in the file
        self._rows: list[tuple[str, tuple]] = []  # to be written
        self._lost = {
            "rows": 0,
            "thinned": 0,
            "signals": 0,
            "unknown": 0,
        }  # read by other threads: never another key

    def take(
        self, details: list[Detail | Whole], exacts: list[Exact | Whole], rows: list[tuple[str, tuple]]
    ) -> None:
        """Take in what was queued."""
        self._assembler.add(detail_chunks(details, self._unfolding))
        self._assembler.add(exact_chunks(exacts))
        self._lost["unknown"] = self._unfolding.unknown
        for table, row in rows:
            self._number(table, row)

    def write(self, lost: Mapping[str, int], *, ending: bool = False) -> None:
        """Put all that was taken in on disk.

        Args:
            lost: what the queue dropped, to be recorded.
            ending: also set the end mark.

        Raises:
            Busy: the file is held by somebody just now; what could not be written is kept, within bounds.
            OSError, sqlite3.Error: it will never work again.
        """
        self._attempts[self.session][_LOST] = dumps(self.lost(lost))
        try:
            self._write_rows()
            if ending:
                last = self._attempts[max(self._attempts)]
                last[_ENDED] = time.time()
                last[_COUNTS] = dumps(self._opened().counts())
                self._write_rows()
        except Busy:
            self._shed()
            raise

    def lost(self, lost: Mapping[str, int]) -> dict[str, int]:
        """What was lost by the queue and here."""
        return {k: v for k, v in (Counter(lost) + Counter(self._lost)).items() if v}

    @property
    def paused(self) -> bool:
        return self._store is None

    def pause(self) -> None:
        """Close the file, but stay its writer. The next write opens it again."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def let_go(self) -> None:
        """Close the file for good and drop the lock."""
        try:
            if self._store is not None:
                self._store.settle()
            self.pause()
        finally:
            self._lock.release()

    def forget(self) -> None:
        """In a forked child: see ``FileLock.forget``."""
        self._lock.forget()

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store(self._path, self._limits.max_bytes)
        return self._store

    def _write_rows(self) -> None:
        """Write blocks, queued rows, and attempts that changed."""
        store = self._opened()
        if store.crowded():
            raise Busy("the log cannot be emptied before its readers let go")
        changed = {id_: (id_, *fields) for id_, fields in self._attempts.items()}
        changed = {id_: row for id_, row in changed.items() if self._written.get(id_) != row}
        rows = [*self._rows, *(("attempt", (*row, crc(*row))) for row in changed.values())]
        blocks = self._assembler.dirty()
        open_ids = {b.id for b in blocks} | self._assembler.open_ids()
        while (
            blocks or rows
        ):  # in portions, so that the file is thinned before it has grown far over its bound
            size = 0
            while blocks and size <= self._limits.max_bytes // 16:
                rows.append(("block", blocks.pop(0).row()))
                size += sum(len(f) for f in rows[-1][1] if isinstance(f, bytes))
            self._lost["thinned"] += store.write(rows, open_ids)
            self._rows.clear()
            rows = []
        self._written.update(changed)
        self._assembler.written()
        self._lost["signals"] = self._assembler.refused

    def _number(self, table: str, row: tuple) -> None:
        """Give a queued row its id and checksum; put facts about attempts with them."""
        if table == "meta":
            self._attempts[self.session][_META] = row[0]
        elif table == "attempt":
            id_, started = row  # the step went back: the attempt before is over
            self._attempts[max(self._attempts)][_ENDED] = started
            self._attempts[id_] = [self.session, started, None, "{}", "{}", "{}"]
        else:
            fields = (self._next[table], *row)
            self._next[table] += 1
            self._rows.append((table, (*fields, crc(*fields))))

    def _shed(self) -> None:
        """Keep no more finished blocks than the queue may hold."""
        while self._assembler.waiting_bytes() > self._limits.queue_bytes:
            self._lost["rows"] += self._assembler.drop_oldest()
