"""``sg.is_healthy`` finds what is not finite in any state, names it, and leaves the healthy alone."""

import pytest
import torch
from torch import nn

import steadygrad as sg

NAN, INF = float("nan"), float("inf")


def trained(kind=torch.optim.Adam):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = kind(model.parameters(), lr=0.01)
    model(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def test_a_trained_state_is_healthy_and_stays_as_it_is():
    model, optimizer = trained()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)  # its best loss so far is infinite
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plateau": plateau.state_dict(),
    }
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = sg.is_healthy(state)
    assert found and not found.bad and str(found).startswith("healthy")
    assert found.num_tensors == len(model.state_dict()) + 3 * len(list(model.parameters()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sg.is_healthy(model) and sg.is_healthy(optimizer) and sg.is_healthy([model, {"o": optimizer}])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_bad_tensor_of_an_optimizer_is_named(value):
    model, optimizer = trained()
    optimizer.state[model[0].weight]["exp_avg_sq"][1, 2] = value
    found = sg.is_healthy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert not found
    assert [b.name for b in found.bad] == ["optimizer.state.0.exp_avg_sq"]
    assert (found.bad[0].nans, found.bad[0].infinities, found.bad[0].size) == (
        int(value != value),
        int(value == value),
        32,
    )
    assert "optimizer.state.0.exp_avg_sq (1 " in str(found)


def test_the_first_names_stand_in_the_text_and_the_rest_is_counted():
    state = {f"w{i}": torch.full((2,), NAN) for i in range(5)}
    assert str(sg.is_healthy(state)).endswith("w2 (2 NaN of 2 values) and 2 more")


def test_kinds_of_tensors():
    healthy = {
        "int": torch.tensor([2**40]), "bool": torch.tensor(True), "empty": torch.empty(0),
        "huge": torch.full((9,), 3e38),
        "half": torch.ones(2, dtype=torch.float16), "complex": torch.ones(2, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(), "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "expanded": torch.ones(1).expand(5), "nothing": None, "name": "w", "number": INF, "function": len,
        "parameter": nn.Parameter(torch.ones(1)),
    }  # fmt: skip
    assert sg.is_healthy(healthy)
    bad = {
        "half": torch.tensor([1.0, INF], dtype=torch.float16), "complex": torch.tensor([complex(0, NAN)]),
        "sparse": torch.diag(torch.tensor([1.0, NAN])).to_sparse(), "float8": torch.tensor([NAN]).to(torch.float8_e5m2),
        "bfloat16": torch.tensor([NAN], dtype=torch.bfloat16), "scalar": torch.tensor(INF),
        "parameter": nn.Parameter(torch.tensor([NAN])),
    }  # fmt: skip
    assert {b.name for b in sg.is_healthy(bad).bad} == set(bad)


def test_a_mask_of_zeros_and_infinities_is_healthy_and_a_weight_with_one_is_not():
    mask = torch.full((4, 4), -INF).triu(1)
    assert sg.is_healthy({"mask": mask})
    mask[0, 0] = 0.5
    assert not sg.is_healthy({"weight": mask})


def test_what_is_ignored_is_not_looked_at():
    state = {"callbacks": {"stopping": {"best": torch.tensor(INF)}}, "state_dict": {"w": torch.ones(2)}}
    assert not sg.is_healthy(state)
    assert sg.is_healthy(state, ignore=["callbacks.*"]) and sg.is_healthy(state, ignore="callbacks.*")


def test_a_tensor_without_values_is_said_to_be_unread():
    found = sg.is_healthy({"a": torch.empty(3, device="meta"), "b": torch.ones(2)})
    assert found and found.unread == ("a",) and found.num_tensors == 1


@pytest.mark.parametrize("thing", [None, 3, "weights.pt", print])
def test_what_is_no_state_is_refused(thing):
    with pytest.raises(TypeError, match="is_healthy needs a state dict"):
        sg.is_healthy(thing)


def test_of_a_sharded_tensor_the_part_of_this_rank_is_looked_at(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs a process group of its own")
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = nn.Parameter(DTensor.from_local(torch.ones(4, 2), mesh, [Shard(0)]))
        optimizer = torch.optim.Adam([weight], lr=0.1)
        weight.square().sum().backward()
        optimizer.step()
        assert sg.is_healthy({"weight": weight, "optimizer": optimizer})
        optimizer.state[weight]["exp_avg"].to_local()[1, 1] = NAN
        (bad,) = sg.is_healthy({"weight": weight, "optimizer": optimizer}).bad
        assert (bad.name, bad.nans, bad.size) == ("optimizer.state.0.exp_avg", 1, 8)
    finally:
        dist.destroy_process_group()
