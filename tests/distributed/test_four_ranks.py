"""Four gloo processes: parameters sharded over two dimensions, and groups that train apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import steadygrad as sg
from tests.distributed.kit import NAN, Seen, Training, batch, net, spawn

pytestmark = pytest.mark.slow
STEPS, BAD = 12, 7


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))


def two_dimensions(rank: int, folder: str) -> dict[str, Any]:
    """Tensor parallel over pairs, FSDP2 over the pairs; a NaN in the data of one pair."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = parallelize_module(mlp(), mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    optimizer, seen = torch.optim.AdamW(model.parameters(), lr=1e-2), Seen()
    wholes = []
    with sg.watch(model, optimizer, runs=folder + "/two", observer=seen) as run:
        for step in range(STEPS):
            x = batch(step, rank // 2)  # the same on the ranks of a pair
            if step == BAD and rank // 2 == 1:
                x[1] = NAN
            optimizer.zero_grad()
            model(x).square().mean().backward()
            wholes.append([float(p.grad.full_tensor().norm()) for p in model.parameters()])
            optimizer.step()
        log = [(a.step, a.action, a.reason) for a in run.actions]
        sums = run._session._together.sums
    return {
        "norms": [s.grad_norms.tolist() for s in seen.steps],
        "totals": [s.grad_norm for s in seen.steps],
        "wholes": wholes,
        "log": log,
        "sums": sums,
        "notes": seen.notes,
    }


def groups(rank: int, folder: str) -> dict[str, Any]:
    """Two trainings beside each other, of two ranks each: one of them meets a NaN."""
    mine = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % 2]

    def trouble(training, step, place):
        if step == BAD and place == "batch" and rank == 3:
            training.x[:] = NAN

    apart = Training(net, rank, folder, True, process_group=mine).run(STEPS, trouble)
    mesh = init_device_mesh("cpu", (4,))
    try:
        Training(lambda: fully_shard(net(), mesh=mesh), rank, folder, True, process_group=mine).run(1)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {"log": apart.log, "notes": apart.seen.notes, "refused": refused}


def all_of_it(rank: int, folder: str) -> dict[str, Any]:
    return {worker.__name__: worker(rank, folder) for worker in (two_dimensions, groups)}


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> list[dict[str, Any]]:
    return spawn(all_of_it, tmp_path_factory.mktemp("four"), ranks=4)


def test_norms_over_two_dimensions_are_those_of_the_whole(four):
    for rank in four:
        found = rank["two_dimensions"]
        assert found["sums"] == STEPS and not found["notes"]
        for step, (norms, wholes) in enumerate(zip(found["norms"], found["wholes"], strict=True)):
            if step != BAD:
                assert norms == pytest.approx(wholes, rel=1e-5)
                assert found["totals"][step] == pytest.approx(sum(w * w for w in wholes) ** 0.5, rel=1e-5)


def test_all_four_leave_out_what_two_of_them_meet(four):
    logs = [rank["two_dimensions"]["log"] for rank in four]
    assert logs[0] == logs[1] == logs[2] == logs[3]
    ((step, action, reason),) = logs[0]
    assert (step, action) == (BAD, "skip") and "the loss of rank 2 is nan, sample 1 of its batch" in reason


def test_groups_decide_apart(four):
    logs = [rank["groups"]["log"] for rank in four]
    assert logs[0] == logs[2] == []
    assert logs[1] == logs[3] and [(step, action) for step, action, *_ in logs[1]] == [(BAD, "skip")]
    assert "the loss of rank 3 is nan" in logs[1][0][2]
    assert not any(rank["groups"]["notes"] for rank in four)


def test_group_without_all_parts_of_a_parameter_is_refused(four):
    for i, rank in enumerate(four):
        mine, others = ("0, 2", "1, 3") if i % 2 == 0 else ("1, 3", "0, 2")
        assert f"process_group has ranks {mine}, but" in rank["groups"]["refused"]
        assert f"is also sharded over ranks {others}" in rank["groups"]["refused"]
