"""One run directory for all ranks of a training."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch.distributed as dist

from steadygrad.integrations.ranks.group import group_of
from steadygrad.trace.rundir import check_run_name, create_run_dir

TIMEOUT = 60.0  # seconds that the others wait for the name that the first rank has found
_watched = count()  # runs of this process, which are the same on all ranks


def rank_and_world() -> tuple[int | None, int]:
    """The rank of this process, None if nobody has given it one, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdigit() else None, int(os.environ.get("WORLD_SIZE", 1))


def new_run_dir(root: Path, name: str | None, default: str) -> tuple[Path, bool]:
    """Make a run directory, or join the one that the first rank makes. Returns it, and whether other ranks share it.

    On a machine that does not see the first one's disk it is made under the same name. The first rank waits for nobody.
    The others wait 60 seconds for it, then each makes one of its own.

    Args:
        root, name, default: as for :func:`steadygrad.trace.rundir.create_run_dir`.
    """
    group = group_of()
    if group is None:
        return create_run_dir(root, name, default), False
    from torch.distributed.distributed_c10d import _get_default_store

    store, key = _get_default_store(), f"steadygrad/run_dir/{next(_watched)}"
    if group.me == 0:
        made = create_run_dir(root, name, default)
        store.set(key, made.name)
        return made, True
    try:
        store.wait([key], timedelta(seconds=TIMEOUT))
    except RuntimeError:
        return create_run_dir(root, name, default), False
    joined = root / check_run_name(store.get(key).decode())
    joined.mkdir(mode=0o700, parents=True, exist_ok=True)
    return joined, True
