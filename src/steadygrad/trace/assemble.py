"""Put chunks together into blocks that grow until they are full."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from steadygrad.trace.blocks import Block, widen
from steadygrad.trace.schema import MAX_KEYS
from steadygrad.trace.waiting import Chunk, Key

BLOCK_BYTES = 256_000  # about how large a block may get: it is written again each time it has grown


class _Growing:
    """A block that takes more steps."""

    def __init__(self, id_: int, key: Key, width: int, capacity: int) -> None:
        self.id, self.key, self.width, self.capacity = id_, key, width, capacity
        self.dirty = True
        self.steps: list[int] = []
        self.data: list[np.ndarray] = []
        self.counts: list[int] = []
        self.columns: list[np.ndarray] = []

    @property
    def room(self) -> int:
        return self.capacity - len(self.steps)

    def block(self) -> Block:
        data = np.concatenate(self.data)
        block = Block(self.id, *self.key, 1, np.array(self.steps, dtype=np.int64), self.width, data)
        if self.counts:
            block.counts = np.array(self.counts, dtype=np.uint32)
            block.columns = np.concatenate(self.columns)
        return block


class Assembler:
    """Blocks in the making. Used by the writing thread alone.

    Args:
        next_id: id of the first block to come.
        block_steps: steps between two flushes, which a block of large rows should not cut.
        block_bytes: about how large a block may get.
    """

    def __init__(self, next_id: int, block_steps: int, block_bytes: int = BLOCK_BYTES) -> None:
        self._next_id = next_id
        self._block_steps = block_steps
        self._block_bytes = block_bytes
        self._growing: dict[Key, _Growing] = {}
        self._full: list[_Growing] = []
        self._keys: set[tuple] = set()
        self.refused = 0  # records of further signals, after MAX_KEYS of them

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Take in chunks, those of one signal in the order of their steps."""
        for chunk in chunks:
            if self._admit(chunk.key, len(chunk.steps)):
                self._append(chunk)

    def dirty(self) -> list[Block]:
        """Blocks that have grown since :meth:`written`, oldest first."""
        growing = [g for g in self._growing.values() if g.dirty]
        return [g.block() for g in sorted(self._full + growing, key=lambda g: g.id)]

    def open_ids(self) -> set[int]:
        return {g.id for g in self._growing.values()}

    def written(self) -> None:
        """All that :meth:`dirty` gave is on disk."""
        self._full.clear()
        for growing in self._growing.values():
            growing.dirty = False

    def waiting_bytes(self) -> int:
        """Bytes of full blocks that are not on disk."""
        return sum(d.nbytes for g in self._full for d in g.data)

    def drop_oldest(self) -> int:
        """Give up the oldest full block that is not on disk. Returns its number of steps."""
        return len(self._full.pop(0).steps)

    def _admit(self, key: Key, records: int) -> bool:
        if key[1:] not in self._keys:
            if len(self._keys) >= MAX_KEYS:
                self.refused += records
                return False
            self._keys.add(key[1:])
        if key not in self._growing:  # blocks of an attempt that is over grow no more
            for old in [k for k in self._growing if k[1:] == key[1:]]:
                self._full.append(self._growing.pop(old))
        return True

    def _append(self, chunk: Chunk) -> None:
        key, steps, width, data, counts, columns = chunk
        if key[-1] == "dense":
            width = max(width, self._growing[key].width) if key in self._growing else width
            data = widen(data, width)
        ends = np.cumsum(counts) if counts is not None else np.arange(1, len(steps) + 1)
        taken = 0
        while taken < len(steps):
            growing = self._block_for(key, width)
            last = min(taken + growing.room, len(steps))
            part = slice(int(ends[taken - 1]) if taken else 0, int(ends[last - 1]))
            growing.width = max(growing.width, width)
            growing.steps += steps[taken:last]
            growing.data.append(data[part])
            if counts is not None and columns is not None:
                growing.counts += counts[taken:last]
                growing.columns.append(columns[part])
            growing.dirty = True
            taken = last

    def _block_for(self, key: Key, width: int) -> _Growing:
        """The block that takes the next step: a new one when the last is full or, if dense, too narrow."""
        growing = self._growing.get(key)
        if growing is not None and growing.room > 0 and (key[-1] != "dense" or growing.width == width):
            return growing
        if growing is not None:
            self._full.append(growing)
        self._growing[key] = _Growing(self._next_id, key, width, self._capacity(key[-1], width))
        self._next_id += 1
        return self._growing[key]

    def _capacity(self, layout: str, width: int) -> int:
        """Steps that a block holds: a multiple of those between two flushes, where its size allows."""
        row_bytes = {"dense": 2 * width, "exact": 8, "sparse": 4 + 6 * width / 16}[layout]
        steps = int(min(self._block_bytes / row_bytes, 10 * self._block_steps))
        return max(1, steps - steps % self._block_steps if steps > self._block_steps else steps)
