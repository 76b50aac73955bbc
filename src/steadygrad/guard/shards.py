"""Snapshots of several ranks on disk: each writes what it holds, and a state is whole where all have written it.

A folder holds ``rank-0``, ``rank-1`` and so on, each with snapshots as :mod:`steadygrad.guard.durable` writes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from steadygrad.guard.container import DamagedSnapshot
from steadygrad.guard.durable import candidates
from steadygrad.guard.saved import SavedSnapshot, read_snapshot

_RANK = re.compile(r"rank-([0-9]{1,9})")


def rank_folder(folder: Path, rank: int) -> Path:
    """Where this rank writes its snapshots.

    Example:
        >>> rank_folder(Path("runs/train-1/snapshots"), 3).name
        'rank-3'
    """
    return folder / f"rank-{rank}"


def ranks_of(folder: str | os.PathLike[str]) -> list[int]:
    """The ranks that have written snapshots here, ascending."""
    with suppress(OSError):
        return sorted(int(match[1]) for name in os.listdir(folder) if (match := _RANK.fullmatch(name)))
    return []


@dataclass(frozen=True, slots=True)
class Common:
    """What :func:`newest_common` found."""

    step: int | None = None
    snapshot: SavedSnapshot | None = None  # of the rank that asked
    damaged: tuple[tuple[str, str], ...] = ()  # file and reason of those that were passed over


def newest_common(
    folder: str | os.PathLike[str],
    rank: int,
    ranks: Sequence[int] | None = None,
    *,
    max_bytes: int | None = None,
) -> Common:
    """The newest state that every rank has written whole, and this rank's part of it.

    Every file is read, and its hashes checked: a state of which one rank's part is damaged is passed over by all.

    Args:
        folder: of the snapshots of a run, on a disk that all ranks see.
        rank: whose part is wanted.
        ranks: those that have to have it; None: all that have a folder here.
        max_bytes: as for :func:`steadygrad.guard.durable.latest_good`.

    Example:
        >>> newest_common("no/such/folder", rank=0).step is None
        True
    """
    wanted = ranks_of(folder) if ranks is None else list(ranks)
    damaged: list[tuple[str, str]] = []
    steps: set[int] | None = None
    mine: dict[int, SavedSnapshot] = {}
    for other in wanted:
        sound = dict(_sound(rank_folder(Path(folder), other), damaged, max_bytes))
        steps = set(sound) if steps is None else steps & set(sound)
        if other == rank:
            mine = sound
    step = max(steps & set(mine), default=None) if steps else None
    return Common(step, None if step is None else mine[step], tuple(damaged))


def _sound(
    folder: Path, damaged: list[tuple[str, str]], max_bytes: int | None
) -> Iterator[tuple[int, SavedSnapshot]]:
    for path in candidates(folder):
        try:
            snapshot = read_snapshot(path, max_bytes=max_bytes)
        except (DamagedSnapshot, OSError) as error:
            damaged.append((f"{folder.name}/{path.name}", str(error)))
        else:
            yield snapshot.step, snapshot
