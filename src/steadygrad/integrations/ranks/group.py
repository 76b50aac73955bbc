"""Which ranks decide together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


class RanksDiffer(ValueError):
    """The ranks cannot decide alike: they watch with different settings, or the group leaves out a rank it needs."""


class RankLost(RuntimeError):
    """Another rank has gone, or has not come in time: there is nobody left to decide with."""


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that decide together, by their numbers in the world, ascending, and the place of this one."""

    ranks: tuple[int, ...]
    me: int  # position in ``ranks``

    @property
    def rank(self) -> int:
        return self.ranks[self.me]


def group_of(process_group: Any = None) -> Group | None:
    """The ranks of a process group, of the whole world if it is None; None where this process trains alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    ranks = tuple(sorted(dist.get_process_group_ranks(process_group or dist.group.WORLD)))
    if len(ranks) < 2:
        return None
    return Group(ranks, ranks.index(dist.get_rank()))


def check_process_group(process_group: Any) -> None:
    """Refuse what is no process group of this process.

    Raises:
        TypeError: it is something else.
        ValueError: ``torch.distributed`` has not been started, or this rank is none of the group's.
    """
    if process_group is None:
        return
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("process_group was given, but torch.distributed is not initialised: do that first")
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"rank {dist.get_rank()} is not in the process_group it was given: pass each rank a group of its own"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup, got {type(process_group).__name__}"
        )


def named(ranks: list[int]) -> str:
    """Ranks for people.

    Example:
        >>> named([1]), named([0, 2, 3, 4, 7])
        ('rank 1', 'ranks 0, 2-4, 7')
    """
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    shown = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
