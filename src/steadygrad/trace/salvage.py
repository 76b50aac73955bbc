"""Open a trace that may be damaged, foreign or still being written, and read what can be read of it.

The reader never writes to the trace, runs nothing that is stored in it (no view, trigger or generated column: the
tables must be exactly ours), and checks sizes before it loads anything.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from steadygrad.trace.schema import MAX_BLOB, MAX_ROWS, TABLES, VERSION

# The latter comes when SQLite quotes damaged text in its message.
_ERRORS = sqlite3.DatabaseError, UnicodeDecodeError
_MAX_COPY = 4_000_000_000  # bytes that are copied to read a trace whose journal cannot be read in place
_MAX_PROBES = 500  # queries spent on damaged places of one table
_NO_END = "its pages lead round in circles"
_MAX_REPEATS = 10_000  # rows that came before
_MAX_ID = 2**26  # assumed where the end of a table is damaged
_OPERATIONS = (
    200_000_000  # of SQLite's machine in one reading: what a table of MAX_ROWS needs, with some room
)


class Unreadable(Exception):
    """Nothing can be read of this file; the text says why."""


class Damage:
    """What was found to be wrong while reading. ``endless``: it would never come to an end, so it is not read again."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.records = 0
        self.endless = False

    def __bool__(self) -> bool:
        return bool(self.notes or self.records)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@contextmanager
def opened(path: Path, damage: Damage) -> Iterator[sqlite3.Connection]:
    """Open a trace for reading, in one read transaction.

    Raises:
        Unreadable: it is no trace, or is damaged where everything hangs from.
    """
    folder: str | None = None
    try:
        if not path.is_file():  # a pipe or a device would block
            raise Unreadable(f"{path.name} is no file")
        if damage.endless:
            raise Unreadable(f"{path.name} has no end: a forged file, or one damaged in a rare way")
        try:
            conn = _connect(path, "mode=ro")
        except sqlite3.OperationalError:  # a directory that cannot be written, or a journal to be played back
            if _is_empty(Path(f"{path}-wal")) and _is_empty(Path(f"{path}-journal")):
                conn = _connect(path, "mode=ro&immutable=1")
            else:
                folder = tempfile.mkdtemp(prefix="steadygrad-")
                conn = _connect(_copy(path, Path(folder)), "mode=rw")
        try:
            _check_tables(conn)
            _check_end(conn, path, damage)
            yield conn
        finally:
            conn.close()
    except (*_ERRORS, OSError) as exc:
        raise Unreadable(f"{path.name} cannot be read ({exc})") from exc
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_end(conn: sqlite3.Connection, path: Path, damage: Damage) -> None:
    """SQLite takes what a page has lost for zeros, and says nothing as long as nobody asks for it."""
    if path.stat().st_size % conn.execute("PRAGMA page_size").fetchone()[0]:
        damage.note(f"{path.name} was cut: it ends in the middle of a page")


def scan(
    conn: sqlite3.Connection, table: str, columns: str, damage: Damage, where: str = "", *args: object
) -> Iterator[tuple]:
    """Yield the rows of a table in the order of their ids, passing over what is damaged.

    ``columns`` begins with ``id``. When the way through the table breaks off, the ids are halved and each half is
    tried, and so on, until only those are missing that lie on damaged pages.
    """
    condition = f"AND ({where})" if where else ""
    seen: set[int] = set()  # a damaged page may lead to the same rows again
    probes = repeats = 0
    ranges: list[tuple[int, int] | None] = [None]  # the whole table first, without a search by id
    while ranges:
        part = ranges.pop()
        limits = "id BETWEEN ? AND ?" if part else "1"
        try:
            query = f"SELECT {columns} FROM {table} WHERE {limits} {condition} ORDER BY id"
            for row in conn.execute(query, (*(part or ()), *args)):
                if row[0] in seen:
                    repeats += not part
                    if repeats > _MAX_REPEATS:
                        raise sqlite3.DatabaseError(_NO_END)
                    continue
                seen.add(row[0])
                if len(seen) > MAX_ROWS:
                    damage.note(f"more than {MAX_ROWS} rows in table {table}: the rest was not read")
                    return
                yield row
        except _ERRORS as exc:
            probes += 1
            damage.note(f"table {table} is damaged: {exc}")
            if str(exc) in (_NO_END, "interrupted"):  # the latter by the bound of operations
                damage.endless = True
                return
            if probes > _MAX_PROBES:
                return
            low, high = part or (0, _last_id(conn, table, damage))
            if low < high:
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]


def check_counts(conn: sqlite3.Connection, counts: Mapping[str, object], damage: Damage) -> None:
    """Compare the number of rows of each table with what it should be: a page can lose rows without a trace."""
    for table in TABLES:
        try:
            # With a condition, as SQLite counts a whole table in one operation, which nothing can end.
            found = conn.execute(f"SELECT count(*) FROM {table} WHERE id > 0").fetchone()[0]
        except _ERRORS as exc:
            damage.note(f"table {table} is damaged: {exc}")
            damage.endless = damage.endless or str(exc) == "interrupted"
            continue
        if found != counts.get(table, found):
            damage.note(f"table {table} has {found} rows instead of {counts[table]}")


def _last_id(conn: sqlite3.Connection, table: str, damage: Damage) -> int:
    try:
        return conn.execute(f"SELECT max(id) FROM {table}").fetchone()[0] or 0
    except _ERRORS as exc:
        damage.note(f"table {table} is damaged: {exc}")
        return _MAX_ID


def _connect(path: Path, how: str) -> sqlite3.Connection:
    conn = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=2.0)
    try:
        if sys.version_info >= (3, 11):
            conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_BLOB)
        conn.text_factory = lambda text: text.decode("utf-8", "replace")
        conn.set_progress_handler(lambda: True, _OPERATIONS)  # ends what runs for ever
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            conn.execute(f"PRAGMA {pragma}")
        conn.execute("BEGIN")
        conn.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone()
    except BaseException:
        conn.close()
        raise
    return conn


def _check_tables(conn: sqlite3.Connection) -> None:
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise Unreadable(
            f"the trace has version {version}, this steadygrad reads up to {VERSION}: install a newer one"
        )
    there = dict(
        conn.execute(
            "SELECT name, sql FROM sqlite_master WHERE length(name) < 100 AND length(sql) < 1000 LIMIT 100"
        )
    )
    for name, sql in TABLES.items():
        if there.get(name) != sql:
            raise Unreadable(f"the tables are not those of a trace (table {name})")


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return True


def _copy(path: Path, folder: Path) -> Path:
    """Copy the trace and its journal to where the journal can be played back."""
    files = [p for p in (path, Path(f"{path}-wal"), Path(f"{path}-journal")) if p.is_file()]
    if sum(os.path.getsize(p) for p in files) > _MAX_COPY:
        raise Unreadable(f"{path.name} is too large to be copied for reading")
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return folder / path.name
