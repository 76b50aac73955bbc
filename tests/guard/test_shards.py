"""The states of several ranks on disk: whole where every rank has written its part."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad.guard.durable import write_snapshot
from steadygrad.guard.shards import newest_common, rank_folder, ranks_of
from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import TrainingState


def write(folder, rank, step):
    """A part that says whose it is, and of which step."""
    module = nn.Module()
    module.register_buffer("x", torch.tensor([float(rank), float(step)]))
    snapshot = Snapshot()
    snapshot.take(TrainingState([module]), step)
    return write_snapshot(rank_folder(folder, rank), snapshot)


def test_newest_state_that_all_ranks_have(tmp_path):
    for rank, steps in ((0, (10, 20)), (1, (10, 20)), (2, (5, 10))):
        for step in steps:
            write(tmp_path, rank, step)
    assert ranks_of(tmp_path) == [0, 1, 2]
    for rank in range(3):
        found = newest_common(tmp_path, rank)
        assert found.step == 10 and not found.damaged
        assert found.snapshot.tensors["x"].tolist() == [rank, 10.0]
    assert newest_common(tmp_path, 0, [0, 1]).step == 20


def test_state_with_a_damaged_part_is_passed_over_by_all(tmp_path):
    for rank in (0, 1):
        for step in (10, 20):
            path = write(tmp_path, rank, step)
    path.write_bytes(path.read_bytes()[:-1])
    for rank in (0, 1):
        found = newest_common(tmp_path, rank)
        assert found.step == 10 and [name for name, _ in found.damaged] == [f"rank-1/{path.name}"]


def test_nothing_in_common_is_nothing(tmp_path):
    write(tmp_path, 0, 10)
    write(tmp_path, 1, 20)
    assert newest_common(tmp_path, 0).step is None
    assert newest_common(tmp_path, 2).step is None
    assert newest_common(tmp_path, 0, [0, 7]).snapshot is None
