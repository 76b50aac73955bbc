"""Parameters sharded over two processes (FSDP2's DTensor) are stepped as the whole ones are, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from steadygrad.optim import BoundedUpdates
from tests.optim.cases import OPTIMIZERS, draw, give, parameters


def one_rank(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def shard(tensors):
        # rows 5 -> 3 + 2 are uneven; a scalar cannot be split
        return [distribute_tensor(t.detach(), mesh, [Shard(0) if t.ndim else Replicate()]) for t in tensors]

    def compare(make):
        whole = parameters()
        parts = [torch.nn.Parameter(p) for p in shard(whole)]
        a, b = make(whole), make(parts)
        for seed in range(4):
            give(whole, draw(seed))
            give(parts, shard(draw(seed)))
            a.step()
            b.step()
        full = [p.full_tensor() for p in parts]
        torch.testing.assert_close(full, [p.detach() for p in whole], rtol=1e-5, atol=1e-6)

    def bounded(params):
        optimizer = torch.optim.SGD(params, lr=1.0)
        BoundedUpdates(optimizer, max_ratio=0.01, vectors=True)
        return optimizer

    failures = []
    for name, make in [("bounded", bounded), *((c.name, c.make) for c in OPTIMIZERS)]:
        try:
            compare(make)
            if name.split("_")[0] in ("nero", "muon", "scion"):
                failures.append(f"{name}: not refused")
        except Exception as error:  # noqa: BLE001 - gathered, so that both ranks go through the same collectives
            if "sharded" not in str(error):
                failures.append(f"{name}: {type(error).__name__}: {error}")
    Path(folder, f"rank{rank}").write_text("\n".join(failures))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    assert Path(tmp_path, "rank0").read_text() == ""
    assert Path(tmp_path, "rank1").read_text() == ""
