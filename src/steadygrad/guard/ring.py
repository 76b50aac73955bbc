"""A few snapshots of different age, and which of them are good to go back to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from steadygrad.guard.image import Restored
from steadygrad.guard.memory import available_bytes
from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import Capture, TrainingState
from steadygrad.guard.tensors import num_bytes

YOUNG = 100  # steps in which the initial state is kept in any case
SMALL = 32 << 20  # bytes of new memory that a take may ask for in the training's own time


_NOT_READY = "the memory for it is still being made ready: ask again at the next step"


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of :meth:`SnapshotRing.take`; true if there is a new snapshot."""

    step: int
    taken: bool
    reason: str = ""  # why not, in words
    nonfinite: tuple[str, ...] = ()  # names of the tensors that were not finite
    left_out: tuple[str, ...] = ()  # what the snapshot could not keep

    def __bool__(self) -> bool:
        return self.taken


@dataclass(slots=True)
class _Entry:
    snapshot: Snapshot
    step: int
    initial: bool
    healthy: int = 0  # healthy steps since it was taken
    suspect: bool = False


class SnapshotRing:
    """Keeps up to ``capacity`` snapshots of a run and knows which are good.

    A snapshot is good when it is finite, when ``confirm`` healthy steps came after it (as many as its age in a
    run that is younger than that), and when no incident followed closely. The initial state is good from the
    start, and stays while the run is young: for 100 steps and until two later ones are good. The newest good
    snapshot is never given up for a new one. Of the others those go that are least missed, so that the ages
    stay spread out.

    ``step`` is one counter over the whole run, given by the caller; a snapshot's step says how many steps had
    been taken. All decisions are arithmetic on it, and on whether the tensors are finite; with one exception: a
    take that needs more than 32 MB of new memory is put off, step by step, until a thread has made the memory
    ready. So the first few snapshots of a large run, the initial one apart, come some steps after they are due.

    Args:
        state: the live run.
        capacity: how many snapshots, at least 2. Fewer are kept where ``max_bytes`` does not allow more.
        every: largest distance between snapshots, in steps. The first ones are taken at 0, 1, 2, 4, 8, ...
        confirm: healthy steps that make a snapshot good.
        margin: snapshots taken this few steps before an incident, or later, are no longer candidates.
        max_bytes: memory for all snapshots together; half of what is available at the first take if None.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> ring = SnapshotRing(TrainingState([model], [torch.optim.SGD(model.parameters(), lr=0.1)]))
        >>> for step in range(40):
        ...     if ring.due(step):
        ...         _ = ring.take(step)
        ...     ring.healthy(step)
        >>> ring.ticks, ring.newest_good().step, ring.newest_good(before_step=20).step
        ((0, 8, 16, 32), 32, 16)
    """

    def __init__(
        self,
        state: TrainingState,
        capacity: int = 4,
        *,
        every: int = 100,
        confirm: int = 5,
        margin: int = 3,
        max_bytes: int | None = None,
    ) -> None:
        if capacity < 2:
            raise ValueError(
                f"capacity must be at least 2 (one to keep while the next is made), got {capacity}"
            )
        if every < 1 or confirm < 0 or margin < 0:
            raise ValueError(f"every must be >= 1, confirm and margin >= 0, got {every}, {confirm}, {margin}")
        self.state = state
        self.capacity, self.every, self.confirm, self.margin = capacity, every, confirm, margin
        self.max_bytes = max_bytes
        self.restored = Restored()  # report of the last restore
        self._entries: list[_Entry] = []  # by step
        self._spare: list[Snapshot] = []  # memory to use again
        self._first: int | None = None  # step of the first attempt
        self._last = 0  # step from which the distance to the next is counted
        self._now = 0
        self._tight_until = -1
        self._awaited: Snapshot | None = None  # whose memory is being made ready for the take that is due
        state.on_added(self._complete)

    # ------------------------------------------------------------------ when
    def due(self, step: int) -> bool:
        """Whether a snapshot should be taken now: at distances that double from 1 up to ``every``."""
        self._clock(step)
        return self.will_be_due(step)

    def will_be_due(self, step: int) -> bool:
        """The same of a step that is still to come, as far as is known now."""
        if self._first is None:
            return True
        distance = min(self.every, max(1, self._last - self._first))
        if step <= self._tight_until:
            distance = min(distance, max(1, self.every // 10))
        return step >= self._last + distance

    def tighten(self, steps: int | None = None) -> None:
        """On an early warning: a tenth of the distance, for the next ``steps`` (default: ``every // 2``)."""
        self._tight_until = max(self._tight_until, self._now + (self.every // 2 if steps is None else steps))

    def _clock(self, step: int) -> None:
        if step < self._now:  # the caller counts from the state it went back to
            self._last = min(self._last, step)
            self._tight_until = -1
        self._now = step

    # ------------------------------------------------------------------ taking
    def take(self, step: int) -> Taken:
        """Take a snapshot. Refused, with a reason, if a tensor is not finite or there is no room for it.

        Put off if its memory is not ready yet: then :meth:`due` goes on saying that one should be taken. One pass
        over the state copies it and looks whether it is finite; see ``benchmarks/speed_state.py``. What was least
        missed is gone also when the state turns out not to be finite; the newest good snapshot never is.
        """
        self._clock(step)
        if self._awaited is not None and self._awaited.preparing:
            return Taken(step, False, _NOT_READY)
        first_ever = self._first is None
        capture = self.state.capture()
        try:
            snapshot, reason = self._room(capture)
            if snapshot is not None and not first_ever and self._put_off(snapshot, capture):
                return Taken(step, False, _NOT_READY)
            self._awaited = None
            self._first = step if self._first is None else self._first
            self._last = step
            if snapshot is None:
                return Taken(step, False, reason)
            snapshot.take(self.state, step, capture)
            bad = snapshot.nonfinite_names()
            if bad:
                snapshot.drop()
                self._spare.append(snapshot)
                more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
                return Taken(step, False, f"not finite: {', '.join(bad[:3])}{more}", bad)
            self._complete_with(capture)
        except (MemoryError, RuntimeError) as error:  # torch reports a failed allocation as RuntimeError
            self.capacity = max(2, len(self._entries))
            self._spare.clear()
            return Taken(step, False, f"no memory for a snapshot: {error}")
        self._entries.append(_Entry(snapshot, step, first_ever))
        if not first_ever:  # an optimizer's state is born in the first step: before it the size is not known
            self._prepare_next(capture)
        return Taken(step, True, left_out=snapshot.left_out)

    def _put_off(self, snapshot: Snapshot, capture: Capture) -> bool:
        """Whether the memory of ``snapshot`` is still being made ready. Once for each take: it may keep growing."""
        if self._awaited is not None:
            return False
        if not snapshot.preparing and snapshot.missing_bytes(capture) > SMALL:
            snapshot.prepare(capture)
        if not snapshot.preparing:
            return False
        self._awaited = snapshot
        self._spare.append(snapshot)
        return True

    def _prepare_next(self, capture: Capture) -> None:
        """Make memory ready for the next snapshot while the run is not yet waiting for it."""
        cost = sum(map(num_bytes, capture.live))
        allowed = self.max_bytes is not None and self.memory_bytes + cost <= self.max_bytes
        if cost > SMALL and allowed and not self._spare and len(self._entries) < self.capacity:
            self._spare.append(Snapshot())
            self._spare[-1].prepare(capture)

    def _room(self, capture: Capture) -> tuple[Snapshot | None, str]:
        """Memory for one more: what is spare, else new if it is allowed, else of the snapshot that is least missed."""
        cost = sum(map(num_bytes, capture.live))
        if self.max_bytes is None:
            self.max_bytes = available_bytes() // 2
        room = self._spare.pop() if self._spare else None
        while True:
            fits = self.memory_bytes + cost <= self.max_bytes
            if fits and (room is not None or len(self._entries) < self.capacity):
                return room or Snapshot(), ""
            if self._spare:
                self._spare.pop()
                continue
            victim = self._least_missed()
            if victim is None:
                held = f" beside the {len(self._entries)} that are held or needed" if self._entries else ""
                return (
                    None,
                    f"{cost:,} bytes are needed{held}, {self.max_bytes:,} are allowed: raise max_bytes",
                )
            self._entries.remove(victim)
            room = room or victim.snapshot

    def _least_missed(self) -> _Entry | None:
        newest = self._newest(None)
        free = [e for e in self._entries if e is not newest and not e.snapshot.holders]
        # The initial state of a young run goes only where nothing else can, and something good has followed.
        free = [e for e in free if not self._keeps_initial(e)] or [e for e in free if newest is not None]
        for e in free:
            if e.suspect:
                return e
        for e in free:
            if self._now - e.step > 20 * self.every:
                return e
        return min(free, key=self._gap_without, default=None)

    def _gap_without(self, entry: _Entry) -> float:
        """How large a hole it would leave, measured by how long ago that is."""
        i = self._entries.index(entry)
        age = max(1, self._now - entry.step)
        before = entry.step - self._entries[i - 1].step if i else age
        after = (self._entries[i + 1].step if i + 1 < len(self._entries) else self._now) - entry.step
        return (before + after) / age

    def _keeps_initial(self, entry: _Entry) -> bool:
        if not entry.initial:
            return False
        later = sum(self._good(e) for e in self._entries if e is not entry)
        return self._now - entry.step < YOUNG or later < 2

    def _complete(self) -> None:
        """Something joined the run: its present values become part of every snapshot."""
        for entry in self._entries:
            entry.snapshot.amend(self.state)

    def _complete_with(self, capture: Capture) -> None:
        """The same for a parameter that appeared without notice."""
        names = {t.name for t in capture.image.tensors}
        for entry in self._entries:
            if not names <= {t.name for t in entry.snapshot.image.tensors}:
                entry.snapshot.amend(self.state)

    # ------------------------------------------------------------------ judging
    def healthy(self, step: int) -> None:
        """A step was taken and nothing was wrong with it."""
        self._clock(step)
        for entry in self._entries:
            entry.healthy += 1

    def incident(self, step: int) -> None:
        """Something went wrong at ``step``: snapshots from ``step - margin`` on are no longer candidates."""
        for entry in self._entries:
            if entry.step >= step - self.margin and not entry.initial:
                entry.suspect = True

    def _good(self, entry: _Entry) -> bool:
        needed = min(self.confirm, entry.step - (self._first or 0))
        return not entry.suspect and entry.healthy >= needed

    def _newest(self, before_step: int | None) -> _Entry | None:
        good = [e for e in self._entries if self._good(e) and (before_step is None or e.step <= before_step)]
        return max(good, key=lambda e: e.step, default=None)

    # ------------------------------------------------------------------ choosing
    @property
    def ticks(self) -> tuple[int, ...]:
        """Steps of the snapshots that are held, oldest first."""
        return tuple(e.step for e in self._entries)

    @property
    def good_ticks(self) -> tuple[int, ...]:
        """Steps of the snapshots that are good, oldest first."""
        return tuple(e.step for e in self._entries if self._good(e))

    def newest_good(
        self, before_step: int | None = None, among: Collection[int] | None = None
    ) -> Snapshot | None:
        """The newest good snapshot that fits the run. None if there is none.

        Args:
            before_step: taken then or earlier.
            among: taken at one of these steps.
        """
        return self._choose([e for e in self._entries[::-1] if among is None or e.step in among], before_step)

    def oldest_good(self) -> Snapshot | None:
        """The oldest good snapshot that fits the run. None if there is none."""
        return self._choose(self._entries, None)

    def _choose(self, entries: list[_Entry], before_step: int | None) -> Snapshot | None:
        for entry in entries:
            early = before_step is None or entry.step <= before_step
            if early and self._good(entry) and entry.snapshot.misfit(self.state) is None:
                return entry.snapshot
        return None

    def pin(self, snapshot: Snapshot, holder: object = "caller") -> None:
        """Keep ``snapshot`` until it is unpinned by the same holder."""
        snapshot.holders.add(holder)

    def unpin(self, snapshot: Snapshot, holder: object = "caller") -> None:
        """Let it go again."""
        snapshot.holders.discard(holder)

    def restore(self, snapshot: Snapshot, *, rng: bool = False) -> int:
        """Put ``snapshot`` back into the run and forget all later ones. What could not be done is in ``restored``.

        Args:
            snapshot: one of the ring's.
            rng: the random number generators too.

        Returns:
            The step of the snapshot.

        Raises:
            RestoreError: it does not fit the run any more; nothing was changed.
        """
        if snapshot.step is None:
            raise ValueError("the snapshot holds nothing any more: ask for newest_good again")
        step = snapshot.step
        self.restored = snapshot.restore(self.state, rng=rng)
        later = [e for e in self._entries if e.step > step]
        self._entries = [e for e in self._entries if e.step <= step]
        self._spare += [e.snapshot for e in later if not e.snapshot.holders]
        self._last = self._now
        return step

    @property
    def memory_bytes(self) -> int:
        """Bytes that all snapshots take together, and the memory that is ready for the next one."""
        return sum(s.memory_bytes for s in [*(e.snapshot for e in self._entries), *self._spare])
