"""Fixup, SkipInit, T-Fixup, DeepNorm, GPT-2 and mu-P on whole models: what the papers say of step 0."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.init import deepnorm_constants, follow, initialise, mup_multipliers, scaled_groups
from tests.init.nets import LanguageModel, ResidualMLP, ResNet, encoder, plain, zoo


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_fixup_net_puts_out_zero_and_its_blocks_do_nothing():
    model, x = ResidualMLP(9), torch.randn(8, 32)
    report = initialise(model, x, "fixup", seeded())
    assert torch.equal(model(x), torch.zeros(8, 4))  # the classification layer starts at 0
    assert torch.equal(model.stream(x), model.stem(x))  # the last layer of each branch starts at 0
    for one in model.fc1:  # L^(-1/(2m-2)) = 9^(-1/2)
        assert one.weight.std().item() == pytest.approx(math.sqrt(2 / 32) / 3, rel=0.1)
    assert model.stem.weight.std().item() == pytest.approx(math.sqrt(1 / 32), rel=0.1)  # outside the branches
    assert [r.note for r in report.rows if "fc1" in r.weight] == ["fixup: x 9^(-1/2)"] * 9
    loss = (model(x) - 1).square().mean()
    loss.backward()
    assert model.head.weight.grad.any() and not model.fc1[0].weight.grad.any()
    assert report.notes == ()


def test_fixup_leaves_queries_and_keys_and_sets_scales_to_one():
    model, x = zoo()["language"]
    initialise(model, x, "fixup", seeded())
    assert not model.out[0].weight.any() and not model.down[0].weight.any()
    assert model.tokens.weight.any()  # tied to the output: a zero embedding would never leave it
    scaled = ResidualMLP(4, scale=0.3)
    initialise(scaled, torch.randn(2, 32), "fixup")
    assert [s.item() for s in scaled.scales] == [1.0] * 4


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
def test_branches_start_at_zero(scheme):
    x = torch.randn(8, 32)
    bare = ResidualMLP(5)
    initialise(bare, x, scheme, seeded())
    assert torch.equal(bare.stream(x), bare.stem(x))
    assert not bare.fc2[0].weight.any() and bare.head.weight.any()
    scaled = ResidualMLP(5, scale=1.0)
    initialise(scaled, x, scheme, seeded())
    assert [s.item() for s in scaled.scales] == [0.0] * 5
    assert torch.equal(scaled.stream(x), scaled.stem(x))
    scaled(x).square().sum().backward()
    assert all(s.grad != 0 for s in scaled.scales)  # the weights are not 0, or nothing would ever learn
    normed = ResNet()
    images = torch.randn(4, 3, 16, 16)
    initialise(normed, images, scheme, seeded())
    assert not normed.blocks[0].norm2.weight.any() and normed.blocks[0].conv2.weight.any()


def test_a_branch_that_ends_in_a_norm_without_scale_is_named():
    class Post(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = (
                nn.Linear(4, 4),
                nn.Linear(4, 4),
                nn.LayerNorm(4, elementwise_affine=False),
            )

        def forward(self, x):
            return x + self.norm(self.b(F.relu(self.a(x))))

    report = initialise(Post(), torch.randn(2, 4), "skipinit")
    assert "ends in a norm without a scale" in report.notes[0]


def test_gpt2():
    model = LanguageModel(width=64, vocabulary=50, layers=3)
    initialise(model, torch.randint(0, 50, (2, 5)), "gpt2", seeded())
    for weight in (model.tokens.weight, model.places.weight, model.qkv[0].weight, model.gate[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    for ends in (*model.out, *model.down):
        assert ends.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.1)
        assert not ends.bias.any()


def test_t_fixup_of_an_encoder_and_decoder():
    model = nn.Transformer(64, 2, 3, 2, 128, batch_first=True)
    x = torch.randn(2, 5, 64)
    report = initialise(model, (x, x), "t_fixup", seeded())
    plain = math.sqrt(2 / 128)  # Xavier of 64 x 64
    fed = math.sqrt(2 / (64 + 128))
    for layers, scale in ((model.encoder.layers, 0.67 * 3**-0.25), (model.decoder.layers, 18**-0.25)):
        for layer in layers:
            query, key, value = layer.self_attn.in_proj_weight.chunk(3)
            assert query.std().item() == pytest.approx(plain, rel=0.05)
            assert key.std().item() == pytest.approx(plain, rel=0.05)
            assert value.std().item() == pytest.approx(plain * scale, rel=0.05)
            assert layer.self_attn.out_proj.weight.std().item() == pytest.approx(plain * scale, rel=0.05)
            assert layer.linear1.weight.std().item() == pytest.approx(fed * scale, rel=0.05)
            assert layer.linear2.weight.std().item() == pytest.approx(fed * scale, rel=0.05)
    cross = model.decoder.layers[0].multihead_attn
    assert cross.in_proj_weight[128:].std().item() == pytest.approx(plain * 18**-0.25, rel=0.05)
    assert "without LayerNorm" not in " ".join(report.notes)  # post-norm: the norms lie on the stream


def test_t_fixup_embeddings_and_its_note_on_norms():
    model = LanguageModel(64, 50, layers=2)
    report = initialise(model, torch.zeros(1, 5).long(), "t_fixup", seeded())
    assert model.places.weight.std().item() == pytest.approx(18**-0.25 / 8, rel=0.1)
    assert "meant for Transformers without LayerNorm" in report.notes[0]


def test_deepnorm():
    model = encoder(3)
    report = initialise(model, torch.randn(2, 5, 16), "deepnorm", seeded())
    alpha, beta = deepnorm_constants(3, 0).encoder
    assert any(f"alpha = {alpha:.4f}" in note for note in report.notes)
    gathered = {"value": [], "query": [], "out": [], "fed": []}
    for layer in model.layers:
        query, _, value = layer.self_attn.in_proj_weight.detach().chunk(3)
        gathered["query"].append(query)
        gathered["value"].append(value)
        gathered["out"].append(layer.self_attn.out_proj.weight.detach())
        gathered["fed"].append(layer.linear1.weight.detach().flatten())
    std = {k: torch.cat(v).std().item() for k, v in gathered.items()}
    xavier = math.sqrt(2 / 32)
    assert std["query"] == pytest.approx(xavier, rel=0.1)
    assert std["value"] == pytest.approx(beta * xavier, rel=0.1)
    assert std["out"] == pytest.approx(beta * xavier, rel=0.1)
    assert std["fed"] == pytest.approx(beta * math.sqrt(2 / 48), rel=0.1)


def wide_net(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 4),
    )  # fmt: skip


def test_mup_factors_are_table_3():
    model, base = wide_net(128), wide_net(32)
    factors = mup_multipliers(model, base, follow(model, torch.zeros(1, 8)).layers)
    table = {
        "0.weight": (1, 1, 4),
        "2.weight": (1, 1 / 4, 1),
        "6.weight": (1 / 2, 1 / 4, 1 / 4),
        "2.bias": (1, 1, 4),
        "6.bias": (1, 1, 1),
    }
    for name, (std, adam, sgd) in table.items():
        assert (factors[name].std, factors[name].adam, factors[name].sgd) == pytest.approx(
            (std, adam, sgd)
        ), name
    same = mup_multipliers(base, copy.deepcopy(base), follow(base, torch.zeros(1, 8)).layers)
    assert {(f.std, f.adam, f.sgd) for f in same.values()} == {(1.0, 1.0, 1.0)}
    language = LanguageModel(32)
    factors = mup_multipliers(language, LanguageModel(16), follow(language, torch.zeros(1, 5).long()).layers)
    assert factors["places.weight"].adam == 1.0 and factors["places.weight"].sgd == 2.0  # an input weight
    assert factors["qkv.0.weight"].adam == 0.5 and factors["norm1.0.weight"].adam == 1.0


def test_mup_coordinate_check():
    """The change of the output after some Adam steps does not grow with the width; without mu-P it does."""

    def change(width: int, scheme: str) -> float:
        total = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            model, x, y = wide_net(width), torch.randn(64, 8), torch.randn(64, 4)
            options = {"base": wide_net(64), "zero_output": True} if scheme == "mup" else {}
            report = initialise(model, x, scheme, seeded(seed), **options)
            optimizer = torch.optim.Adam(report.adam_groups(model, 1e-3))
            before = model(x).detach()
            for _ in range(3):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
            total += (model(x) - before).square().mean().sqrt().item()
        return total

    def slope(scheme: str) -> float:
        return math.log(change(1024, scheme) / change(64, scheme)) / math.log(16)

    assert abs(slope("mup")) < 0.1
    assert slope("auto") > 0.3


def test_mup_initial_scale_and_groups():
    model, base = wide_net(256), wide_net(64)
    report = initialise(model, torch.zeros(1, 8), "mup", seeded(), base=base)
    assert model[2].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.03)
    assert model[6].weight.std().item() == pytest.approx(math.sqrt(1 / 256) / 2, rel=0.1)
    groups = report.adam_groups(model, 0.1)
    assert {round(g["lr"], 6): len(g["params"]) for g in groups} == {0.1: 5, 0.025: 3}
    assert sum(len(g["params"]) for g in report.sgd_groups(model, 0.1)) == 8
    with torch.device("meta"):
        meta = wide_net(64)
    assert initialise(model, torch.zeros(1, 8), "mup", base=meta).adam_lr == report.adam_lr


def test_groups():
    with pytest.raises(ValueError, match="lr must be positive and finite, got 0"):
        scaled_groups(nn.Linear(2, 2), 0, {})
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(g["params"]) for g in scaled_groups(model, 0.1, {})] == [1]


def test_gpt2_says_when_there_are_no_norms():
    def note(model, x):
        return [n for n in initialise(model, x, "gpt2").notes if "none" in n]

    expected = ["gpt2 is meant for nets with norms; this one has none, so its signal shrinks at every weight"]
    model, x = plain(nn.ReLU, 3, 32), torch.randn(8, 32)
    assert note(model, x) == expected and model(x).std() < 1e-2
    assert note(ResidualMLP(4), torch.randn(8, 32)) == expected
    for kind in ("conv", "language", "encoder"):
        assert note(*zoo()[kind]) == []
    normed = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    assert note(normed, x) == []
