"""Gradients sharded over two processes (FSDP2's DTensor) are clipped as the whole ones are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from steadygrad.clip import FoldedClip
from tests.clip.rules import RULES, gradients, parameters

CASES = [c for c in RULES if c.name != "spam"]


def folded_steps(rank: int, shard: Callable[..., list[torch.Tensor]]) -> list[str]:
    """Steps with sharded parameters against those with whole ones; the second meets a nan on one rank."""
    whole, parts = parameters(), [torch.nn.Parameter(p) for p in shard(parameters())]
    clips = [FoldedClip(torch.optim.AdamW(params, lr=0.1), 0.5) for params in (whole, parts)]
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are clipped the plain way
        for step in range(3):
            for params, grads in ((whole, gradients(step, 80.0)), (parts, shard(gradients(step, 80.0)))):
                for p, g in zip(params, grads, strict=True):
                    p.grad = g
            if step == 1:
                whole[0].grad[0, 0] = float("nan")
                if rank == 0:
                    parts[0].grad.to_local()[0, 0] = float("nan")
            finite = [bool(clip.step().finite) for clip in clips]
            if finite != [step != 1] * 2:
                failures.append(f"step {step}: {finite}")
    for p, q in zip(whole, parts, strict=True):
        if not torch.allclose(p, q.full_tensor(), rtol=2e-6, atol=1e-7):
            failures.append(f"a parameter of shape {tuple(p.shape)} differs")
    return failures


def one_rank(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def shard(tensors):
        # rows 5 -> 3 + 2 are uneven; a scalar cannot be split
        return [distribute_tensor(t.detach(), mesh, [Shard(0) if t.ndim else Replicate()]) for t in tensors]

    failures = []
    for case in CASES:
        try:
            plain, rule = case.make(parameters()), case.make(shard(parameters()))
            for size in (1.0, 1.0, 80.0) if case.remembers else (80.0,):
                whole, parts = gradients(3, size), shard(gradients(3, size))
                want, got = plain(whole), rule(parts)
                torch.testing.assert_close([p.full_tensor() for p in parts], whole, rtol=2e-6, atol=1e-7)
                torch.testing.assert_close(tuple(got), tuple(want), rtol=2e-6, atol=0)
            poisoned = shard(gradients(3, 80.0))
            if rank == 1:
                poisoned[0].to_local()[0, 0] = float("nan")
            assert not rule(poisoned).finite, "both ranks must see it"
        except Exception as error:  # noqa: BLE001 - gathered, so that both ranks go through the same collectives
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
    failures += folded_steps(rank, shard)
    Path(folder, f"rank{rank}").write_text("\n".join(failures))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    assert Path(tmp_path, "rank0").read_text() == ""
    assert Path(tmp_path, "rank1").read_text() == ""
