"""What the training thread has given and the writing thread has not yet taken: bounded."""

from __future__ import annotations

from collections import Counter, deque

from steadygrad.trace.waiting import Detail, Exact, Whole

_MAX_EXACT = 100_000  # steps
_MAX_ROWS = 100_000  # events and names


class Backlog:
    """Three queues. When one is full its oldest record is dropped and counted. The caller holds a lock."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self.details: deque[Detail | Whole] = deque()
        self.exacts: deque[Exact | Whole] = deque()
        self.rows: deque[tuple[str, tuple]] = deque()  # (table, row without id and checksum)
        self.dropped: Counter[str] = Counter()

    @property
    def empty(self) -> bool:
        return not (self.details or self.exacts or self.rows)

    def put_whole(self, whole: Whole) -> None:
        """Its detail and its scalars."""
        self.put_exact(whole)
        self.put_detail(whole)

    def put_detail(self, detail: Detail | Whole) -> None:
        self.details.append(detail)
        self._bytes += detail.nbytes
        while self._bytes > self._max_bytes and len(self.details) > 1:
            oldest = self.details.popleft()
            self._bytes -= oldest.nbytes
            self.dropped["rows"] += 1
            if isinstance(oldest, Whole):
                oldest.give_up_detail()

    def put_exact(self, exact: Exact | Whole) -> None:
        self.exacts.append(exact)
        if len(self.exacts) > _MAX_EXACT:
            self.exacts.popleft()
            self.dropped["scalars"] += 1

    def put_row(self, table: str, row: tuple) -> None:
        self.rows.append((table, row))
        if len(self.rows) > _MAX_ROWS:
            self.rows.popleft()
            self.dropped["events"] += 1

    def take(self) -> tuple[list[Detail | Whole], list[Exact | Whole], list[tuple[str, tuple]]]:
        """Empty the queues and return what was in them."""
        taken = list(self.details), list(self.exacts), list(self.rows)
        self.clear()
        return taken

    def clear(self) -> None:
        self.details.clear()
        self.exacts.clear()
        self.rows.clear()
        self._bytes = 0
