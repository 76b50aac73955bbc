"""Roles of parameters, and the groups made of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadygrad.optim import MuonAdamW, Scion, muon_groups, parameter_roles, scion_groups


class Language(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        self.table = nn.Parameter(torch.randn(5, 8) * 0.1)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens) + self.position + self.table))


def test_roles_of_a_language_model():
    roles = parameter_roles(Language(), embeddings=["position", "table"])
    assert roles == {
        "position": "embedding",
        "table": "embedding",
        "embed.weight": "embedding",
        "block.self_attn.in_proj_weight": "hidden",
        "block.self_attn.in_proj_bias": "vector",
        "block.self_attn.out_proj.weight": "hidden",
        "block.self_attn.out_proj.bias": "vector",
        "block.linear1.weight": "hidden",
        "block.linear1.bias": "vector",
        "block.linear2.weight": "hidden",
        "block.linear2.bias": "vector",
        "block.norm1.weight": "vector",
        "block.norm1.bias": "vector",
        "block.norm2.weight": "vector",
        "block.norm2.bias": "vector",
        "head.weight": "output",
    }


def test_a_shared_weight_is_tied_and_then_no_hidden_one_is_the_output():
    roles = parameter_roles(Language(tied=True))
    assert roles["embed.weight"] == "tied" and "output" not in roles.values()
    assert roles["block.linear2.weight"] == "hidden"


def test_outputs_by_name():
    assert parameter_roles(Language(), outputs=["block.linear2"])["block.linear2.weight"] == "output"
    assert parameter_roles(Language(), outputs=["block.linear2"])["head.weight"] == "hidden"
    assert "output" not in parameter_roles(Language(), outputs=()).values()
    assert parameter_roles(Language(), outputs=["block"])["block.linear1.bias"] == "vector"


def test_convolutions_and_frozen_parameters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    roles = parameter_roles(model)
    assert roles["0.weight"] == "hidden" and roles["3.weight"] == "output" and "2.weight" not in roles
    cls_token = nn.Module()
    cls_token.token = nn.Parameter(torch.zeros(1, 1, 8))
    assert parameter_roles(cls_token) == {"token": "vector"}


def test_bad_names():
    with pytest.raises(ValueError, match='outputs names "tail"'):
        parameter_roles(Language(), outputs=["tail"])
    with pytest.raises(ValueError, match='embeddings names "pos"'):
        parameter_roles(Language(), embeddings=["pos"])
    with pytest.raises(TypeError, match=r'write \["head"\]'):
        parameter_roles(Language(), outputs="head")
    with pytest.raises(ValueError, match="nothing to optimise"):
        muon_groups(nn.ReLU())
    with pytest.raises(ValueError, match="nothing to optimise"):
        scion_groups(Language().requires_grad_(False))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("make", "lr"),
    [(lambda m: MuonAdamW(muon_groups(m, lr=3e-3)), 3e-3), (lambda m: Scion(scion_groups(m)), None)],
)
def test_every_parameter_is_in_one_group_and_the_model_learns(make, lr, tied):
    torch.manual_seed(0)
    model = Language(tied)
    optimizer = make(model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    names = [n for group in optimizer.param_groups for n in group["param_names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    tokens = torch.randint(11, (8, 5))
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


def test_muon_groups():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.Linear(4, 9))
    groups = muon_groups(model, lr=0.02, weight_decay=0.1, adamw_lr=3e-4)
    found = [(g["algorithm"], g["lr"], g["weight_decay"], [n for n, _ in g["params"]]) for g in groups]
    assert found == [
        ("muon", 0.02, 0.1, ["1.weight"]),
        ("adamw", 3e-4, 0.1, ["0.weight", "2.weight"]),
        ("adamw", 3e-4, 0.0, ["1.bias", "2.bias"]),
    ]
    assert [g["algorithm"] for g in muon_groups(nn.Linear(3, 2, bias=False))] == ["adamw"]


def test_the_algorithm_of_a_group_decides():
    weight, bias = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    optimizer = MuonAdamW([{"params": [weight], "algorithm": "adamw"}])
    weight.grad, bias.grad = torch.ones(3, 2), torch.ones(3)
    optimizer.step()
    twin = nn.Parameter(torch.ones(3, 2))
    adamw = torch.optim.AdamW([twin], lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    twin.grad = torch.ones(3, 2)
    adamw.step()
    torch.testing.assert_close(weight, twin, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="Muon needs two dimensions or more"):
        MuonAdamW([{"params": [bias], "algorithm": "muon"}])
    with pytest.raises(ValueError, match="Muon needs two dimensions or more"):
        optimizer.add_param_group({"params": [bias], "algorithm": "muon"})
    with pytest.raises(ValueError, match='norm "sign" needs two dimensions'):
        Scion([{"params": [("bias", bias)], "norm": "sign"}])
    assert len(optimizer.param_groups) == 1


def test_adamw_half_equals_torchs_adamw():
    params = [nn.Parameter(torch.linspace(-1, 1, 6)), nn.Parameter(torch.tensor(2.0))]
    theirs = [nn.Parameter(p.detach().clone()) for p in params]
    a = MuonAdamW(params, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    b = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    for i in range(20):
        for p, q in zip(params, theirs, strict=True):
            p.grad = torch.sin(p.detach() + i)
            q.grad = torch.sin(p.detach() + i)
        a.step()
        b.step()
    for p, q in zip(params, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["spectral", "input", "sign", "row", "rms"])
def test_every_norm_of_scion_agrees_with_the_twin(name):
    from tests.optim.cases import arrays, draw, give
    from tests.optim.oracles import Scion as Twin

    shapes = ((6, 4), (3, 4, 2, 2), (8, 3)) if name != "rms" else ((6, 4), (5,), ())
    params = [nn.Parameter(w) for w in draw(7, torch.float64, shapes)]
    optimizer = Scion(params, lr=0.01, scale=3.0, norm=name)
    twin = Twin(arrays(params), **optimizer.defaults)
    for step in range(20):
        grads = draw(step, torch.float64, shapes)
        if grads[0].ndim > 1:
            grads[0][1] = 0  # a row without a gradient
        give(params, grads)
        optimizer.step()
        for got, want in zip(arrays(params), twin([g.numpy() for g in grads]), strict=True):
            torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-8, atol=1e-10)
