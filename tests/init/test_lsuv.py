"""LSUV: unit variance everywhere, in one pass, without touching the model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.init import initialise, unit_variance_scales
from tests.init.nets import LanguageModel, Net, ResNet, plain, zoo


def variances(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    found = {}

    def note(name):
        return lambda m, a, out: found.update({name: out.var(correction=0).item()})

    layers = [
        (n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    handles = [m.register_forward_hook(note(n)) for n, m in layers]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus])
def test_every_layer_has_unit_variance(activation):
    model, x = plain(activation, 12, 32), torch.randn(128, 32)
    initialise(model, x, "lsuv", tol=1e-4)
    assert variances(model, x) == pytest.approx({n: 1.0 for n in variances(model, x)}, abs=2e-4)


def test_convolutions_norms_and_skips():
    model, x = ResNet(), torch.randn(8, 3, 16, 16)
    initialise(model, x, "lsuv")
    assert variances(model, x) == pytest.approx({n: 1.0 for n in variances(model, x)}, abs=0.02)


def test_one_pass_equals_the_papers_loop():
    """The slow twin: layer after layer, a forward pass each."""
    x = torch.randn(64, 16)
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(16, 16, bias=False), nn.ELU())])
    twin = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(16, 16, bias=False), nn.ELU())])
    twin.load_state_dict(model.state_dict())
    scales = unit_variance_scales(model, x, [f"{i}.weight" for i in (0, 2, 4, 6)], tol=1e-6)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    for i in (0, 2, 4, 6):
        for _ in range(10):
            variance = twin[: i + 1](x).var(correction=0)
            if abs(variance - 1) < 1e-6:
                break
            twin[i].weight.data /= variance.sqrt()
        ratio = (twin[i].weight / model[i].weight).mean().item()
        assert scales[f"{i}.weight"] == pytest.approx(ratio, rel=1e-4)


def test_functional_weights_and_constant_biases():
    model = Net(lambda m, x: F.linear((x @ m.w).tanh(), m.v, m.b), w=nn.Parameter(torch.randn(8, 8)),
                v=nn.Parameter(torch.randn(4, 8)), b=nn.Parameter(torch.randn(4)))  # fmt: skip
    x = torch.randn(64, 8)
    scales = unit_variance_scales(model, x, ["w", "v"])
    with torch.no_grad():
        model.w.mul_(scales["w"])
        model.v.mul_(scales["v"])
    assert (x @ model.w).var(correction=0).item() == pytest.approx(1.0, abs=0.01)


def test_attention_scales_its_output_only():
    model, x = zoo()["encoder"]
    report = initialise(model, x, "lsuv")
    notes = {r.weight: r.note for r in report.rows}
    assert "lsuv" in notes["layers.0.self_attn.out_proj.weight"]
    assert "lsuv" not in notes["layers.0.self_attn.in_proj_weight"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_starts_near_the_loss_of_chance(tied):
    torch.manual_seed(0)
    model, index = LanguageModel(64, 65, 2), torch.randint(0, 65, (16, 8))
    model.head.weight = model.tokens.weight if tied else nn.Parameter(torch.randn(65, 64))
    body = model.head.register_forward_pre_hook(lambda m, x: F.layer_norm(x[0], (64,)))
    report = initialise(model, index, "lsuv")
    with torch.no_grad():
        loss = F.cross_entropy(model(index).flatten(0, 1), index.roll(1, 1).flatten()).item()
    body.remove()
    assert math.log(65) - 0.3 < loss < math.log(65) + 1.2
    notes = {r.weight: r.note for r in report.rows}
    assert ("head.weight" in notes) is not tied and "lsuv" in notes["down.1.weight"]
    if tied:  # the table, and the places beside it, as in auto
        assert "tied to the output" in notes["tokens.weight"] and "lsuv" not in notes["tokens.weight"]
        assert model.tokens.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
        assert model.places.weight.std().item() == pytest.approx(1 / 8, rel=0.15)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_output_without_variance_is_named(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="the output of '0.weight' has variance"):
        unit_variance_scales(model, torch.full((4, 4), value), ["0.weight"])


def test_bad_input():
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(4, 4)
    with pytest.raises(ValueError, match="not used in the run on example_input: 1.weight"):
        unit_variance_scales(model, x, ["1.weight"])
    with pytest.raises(ValueError, match="tol must be positive"):
        unit_variance_scales(model, x, ["0.weight"], tol=-1)
    with pytest.raises(ValueError, match="max_iter must be at least 1"):
        unit_variance_scales(model, x, ["0.weight"], max_iter=0)
