"""Snapshots on disk: written atomically, checked by hash when they are read, two generations of them.

A folder holds ``snapshot-0000000001.sgs`` and so on; the highest number that is sound is the last good state.
Each is written under a temporary name beside it (created exclusively, mode 0600), synced, read back and
verified, and only then renamed; the directory is synced; and only then the oldest goes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from steadygrad.guard import container
from steadygrad.guard.container import DamagedSnapshot as DamagedSnapshot
from steadygrad.guard.ring import SMALL, SnapshotRing
from steadygrad.guard.saved import SavedSnapshot as SavedSnapshot
from steadygrad.guard.saved import contents
from steadygrad.guard.saved import read_snapshot as read_snapshot
from steadygrad.guard.snapshot import Frozen, Snapshot

GENERATIONS = 2
_NAME = re.compile(r"snapshot-([0-9]{10})\.sgs")  # \d would match the digits of other scripts too
_TEMPORARY = re.compile(r"\.snapshot-([0-9]{1,10})-[0-9a-f]{16}\.tmp")


# ---------------------------------------------------------------------- writing
def write_snapshot(folder: str | os.PathLike[str], snapshot: Snapshot | Frozen) -> Path:
    """Write a snapshot as the newest generation of ``folder``, which is made if it is missing.

    Whatever fails, and whenever the process is killed, the generations before it stay whole.

    Args:
        folder: one run's; nobody else may write there at the same time.
        snapshot: finite; it must not be taken anew meanwhile.

    Returns:
        The path of the new file, synced to disk and verified.

    Raises:
        OSError: no room on the disk, no permission, and the like. The temporary file is gone.
        ValueError: the snapshot holds nothing, or something that is not finite.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from steadygrad.guard.state import TrainingState
        >>> model = torch.nn.Linear(2, 1)
        >>> state, snapshot = TrainingState([model]), Snapshot()
        >>> snapshot.take(state, step=7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_snapshot(folder, snapshot).name, latest_good(folder).snapshot.step
        ('snapshot-0000000001.sgs', 7)
    """
    frozen = snapshot.freeze() if isinstance(snapshot, Snapshot) else snapshot
    bad = frozen.nonfinite_names
    if bad:
        raise ValueError(f"only finite snapshots are written: {', '.join(bad[:3])} is not finite")
    folder = Path(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".snapshot-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | container.flags("O_NOFOLLOW", "O_BINARY")
        fd = os.open(temporary, flags, 0o600)
        try:
            blobs, extra = contents(frozen)
            container.write(fd, blobs, extra)
        finally:
            os.close(fd)
        with container.opened(temporary) as reader:
            reader.verify()
        older = _generations(folder)
        path = folder / f"snapshot-{older[0][0] + 1 if older else 1:010d}.sgs"
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)
    for _, old in older[GENERATIONS - 1 :]:
        os.unlink(old)
    return path


def _generations(folder: Path) -> list[tuple[int, Path]]:
    """Numbers and paths of what is in the folder under the name of a snapshot, newest first."""
    found = [
        (int(match[1]), folder / name) for name in os.listdir(folder) if (match := _NAME.fullmatch(name))
    ]
    return sorted(found, reverse=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # a directory cannot be opened there; the rename is as durable as the system makes it
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files that killed processes of this machine have left in ``folder``."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = _TEMPORARY.fullmatch(name)
            if match and not _is_alive(int(match[1])):
                os.unlink(Path(folder) / name)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # we are only starting to write: it is of an earlier process with our number
    if os.name != "posix":
        return True  # there the call below would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


# ---------------------------------------------------------------------- reading
@dataclass(frozen=True, slots=True)
class Latest:
    """What :func:`latest_good` found."""

    snapshot: SavedSnapshot | None = None
    path: Path | None = None
    damaged: tuple[tuple[str, str], ...] = ()  # file name and reason of the newer ones that were passed over


def latest_good(folder: str | os.PathLike[str], *, max_bytes: int | None = None) -> Latest:
    """The newest sound snapshot of a folder; newer ones that are damaged are passed over, and named.

    Example:
        >>> latest_good("no/such/folder").snapshot is None
        True
    """
    damaged: list[tuple[str, str]] = []
    for path in candidates(Path(folder)):
        try:
            return Latest(read_snapshot(path, max_bytes=max_bytes), path, tuple(damaged))
        except (DamagedSnapshot, OSError) as error:
            damaged.append((path.name, str(error)))
    return Latest(damaged=tuple(damaged))


def candidates(folder: Path) -> Iterator[Path]:
    """Files of snapshots in a folder, newest first; none if it cannot be read."""
    with contextlib.suppress(OSError):
        yield from (path for _, path in _generations(folder))


# ---------------------------------------------------------------------- in the background
class DurableWriter:
    """Writes good snapshots to disk from a thread of its own, out of their finished copies in memory.

    The live tensors are never read, so the training may change them meanwhile. A failure is told once, through
    ``on_failure``, in the thread of the caller; the last good generation stays, and later offers try again. In
    a forked child all methods do nothing.

    The beginning of a run with more than 32 MB of state is left alone: its first write comes ``first_after`` seconds
    after the writer was made, at an offer that cannot wait, or at :meth:`close`. Killed before, it leaves nothing.

    Args:
        folder: of one run; made at the first write.
        on_failure: is given the reason, once.
        max_share: largest share of the time that is spent writing, in (0, 1]; offers that come sooner are
            declined.
        first_after: seconds in which large snapshots are declined at first, >= 0.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        on_failure: Callable[[str], None] | None = None,
        max_share: float = 0.05,
        first_after: float = 30.0,
    ) -> None:
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must be in (0, 1], got {max_share}")
        if not first_after >= 0:
            raise ValueError(f"first_after must be >= 0 seconds, got {first_after}")
        self.folder = Path(folder)
        self.written: int | None = None  # step of the newest snapshot that is on disk
        self._on_failure = on_failure
        self._max_share = max_share
        self._pid = os.getpid()
        self._job: _Job | None = None
        self._not_before = 0.0
        self._large_not_before = time.monotonic() + first_after
        self._offered: SnapshotRing | None = None  # the ring of the last offer
        self._failure: str | None = None
        self._told = False

    def offer(self, ring: SnapshotRing, *, now: bool = False) -> bool:
        """Have the ring's newest good snapshot written, unless it is on disk already or it is too soon.

        Args:
            ring: its snapshots are not used again while they are being written.
            now: also if it is too soon; waits for a write that is under way.

        Returns:
            Whether a write was begun.
        """
        if os.getpid() != self._pid:
            return False
        if now:
            self.flush()
        self._offered = ring
        if not self._may_begin(now):
            return False
        snapshot = ring.newest_good()
        if snapshot is None or snapshot.step == self.written:
            return False
        return self.submit(snapshot, now=now)

    def submit(self, snapshot: Snapshot, *, now: bool = False) -> bool:
        """Have ``snapshot`` written. False if another is being written, or if it is too soon and not ``now``."""
        if os.getpid() != self._pid:
            return False
        if not self._may_begin(now) or not now and self._is_early(snapshot):
            return False
        snapshot.holders.add(self)
        self._job = _Job(self.folder, snapshot, snapshot.freeze(), first=self.written is None)
        self._job.thread.start()
        return True

    def ready(self, ring: SnapshotRing) -> bool:
        """Whether a good snapshot of the ring is newer than the last one on disk, and it is not too soon for it."""
        ticks = ring.good_ticks
        if not ticks or ticks[-1] == self.written or not self._may_begin(False):
            return False
        return time.monotonic() >= self._large_not_before or ring.memory_bytes <= SMALL

    def _may_begin(self, now: bool) -> bool:
        self._collect()
        return self._job is None and (now or time.monotonic() >= self._not_before)

    def _is_early(self, snapshot: Snapshot) -> bool:
        return snapshot.memory_bytes > SMALL and time.monotonic() < self._large_not_before

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being written. False if that took longer than ``timeout`` seconds."""
        if os.getpid() != self._pid:
            return True
        if self._job is not None:
            self._job.thread.join(timeout)
        self._collect()
        return self._job is None

    def close(self, timeout: float | None = 60.0) -> bool:
        """Finish what is being written; begin with it, if nothing was written of all that was offered.

        False if that took longer than ``timeout`` seconds.
        """
        if self._offered is not None and self._job is None and self.written is None:
            self.offer(self._offered, now=True)
        return self.flush(timeout)

    def _collect(self) -> None:
        """Take the outcome of a finished write, in the caller's thread."""
        job = self._job
        if job is None or job.thread.is_alive():
            return
        self._job = None
        job.snapshot.holders.discard(self)
        self._not_before = time.monotonic() + job.seconds * (1 / self._max_share - 1)
        if job.error is None:
            self.written = job.frozen.step
            return
        self._failure = f"{type(job.error).__name__}: {job.error}"
        if not self._told and self._on_failure is not None:
            self._told = True
            self._on_failure(
                f"the snapshot of step {job.frozen.step} was not written to disk: {self._failure}"
            )


@dataclass
class _Job:
    """One write, in a thread that ends with it."""

    folder: Path
    snapshot: Snapshot
    frozen: Frozen
    first: bool  # of this process: clear what killed processes left
    error: Exception | None = None
    seconds: float = 0.0
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="steadygrad-snapshots", daemon=True)

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            if self.first:
                remove_leftovers(self.folder)
            write_snapshot(self.folder, self.frozen)
        except Exception as error:  # noqa: BLE001 - whatever failed is handed to the caller's thread
            self.error = error
        self.seconds = time.monotonic() - begun
