"""DyT: the formula, and the replacement of a model's norms."""

import math

import pytest
import torch
from torch import nn

from steadygrad.nn.norm import DyT, replace_norms_with_dyt


def test_it_is_the_formula():
    layer = DyT((2, 3), alpha_init=0.7, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = torch.randn(4, 2, 3).double()
    for b in range(4):
        for i in range(2):
            for j in range(3):
                want = layer.weight[i, j] * math.tanh(0.7 * x[b, i, j]) + layer.bias[i, j]
                torch.testing.assert_close(layer(x)[b, i, j], want)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))


def test_it_is_bounded_whatever_the_input():
    y = DyT(3)(torch.tensor([[1e30, -1e30, math.inf]]))
    assert y.tolist() == [[1.0, -1.0, 1.0]]
    assert DyT(3)(torch.full((1, 3), math.nan)).isnan().all()
    assert DyT(3)(torch.zeros(1, 3)).tolist() == [[0.0] * 3]


def test_settings():
    plain = DyT(3, elementwise_affine=False)
    assert [n for n, _ in plain.named_parameters()] == ["alpha"] and plain.alpha == 0.5
    assert [n for n, _ in DyT(3, bias=False).named_parameters()] == ["alpha", "weight"]
    with pytest.raises(ValueError, match="alpha_init must be finite, got nan"):
        DyT(3, alpha_init=math.nan)
    with pytest.raises(ValueError, match="normalized_shape must be one or more sizes, got -1"):
        DyT(-1)
    with pytest.raises(ValueError, match=r"last dimensions of input must be \(3,\), got \(2, 4\)"):
        DyT(3)(torch.zeros(2, 4))


class RootMean(nn.Module):
    """As some libraries have it: no normalized_shape."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))

    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.LayerNorm(4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False))
        self.again = self.first
        self.own = RootMean()
        self.image = ChannelsFirst(4)
        self.no_bias = nn.LayerNorm(4, bias=False)


def test_norms_are_replaced_and_their_parameters_kept():
    model = Model().to(torch.float64).eval()
    before = dict(model.named_parameters())
    replaced = replace_norms_with_dyt(model, alpha_init=0.3)
    assert sorted(replaced) == ["again", "body.1", "body.2", "first", "no_bias"]
    assert model.first is model.again is replaced["first"] and type(model.image) is ChannelsFirst
    after = dict(model.named_parameters())
    assert {n for n in after if n not in before} == {
        f"{n}.alpha" for n in ("first", "body.1", "body.2", "no_bias")
    }
    assert all(after[n] is p for n, p in before.items()), "an optimizer holds the same parameters"
    assert model.body[1].bias is None and model.body[2].weight is None and model.no_bias.bias is None
    assert all(m.alpha == 0.3 and not m.training for m in replaced.values())
    assert model.first.alpha.dtype == torch.float64
    x = torch.randn(2, 4).double()
    torch.testing.assert_close(
        model.body(x), (0.3 * (0.3 * model.body[0](x)).tanh() * model.body[1].weight).tanh()
    )


def test_other_classes_by_name():
    model = Model()
    assert list(replace_norms_with_dyt(model, norms=[RootMean])) == ["own"]
    assert model.own.normalized_shape == (4,) and isinstance(model.first, nn.LayerNorm)


def test_nothing_to_replace_is_an_error_that_says_what_there_is():
    with pytest.raises(
        ValueError, match="no LayerNorm or RMSNorm to replace; it has BatchNorm1d: name those"
    ):
        replace_norms_with_dyt(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="no LayerNorm or RMSNorm to replace$"):
        replace_norms_with_dyt(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model is itself a LayerNorm"):
        replace_norms_with_dyt(nn.LayerNorm(2))
    model = Model()
    with pytest.raises(ValueError, match="alpha_init must be finite"):
        replace_norms_with_dyt(model, alpha_init=math.inf)
    assert isinstance(model.first, nn.LayerNorm), "nothing is changed before the check"
    with pytest.raises(ValueError, match=r"body.0 \(Odd\) has neither"):
        model.body[0] = type("Odd", (nn.Module,), {})()
        replace_norms_with_dyt(model, norms=[nn.LayerNorm, type(model.body[0])])
    assert isinstance(model.first, nn.LayerNorm)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_computes_with_it_in_evaluation_too(norm_first):
    """Its fast path in evaluation would read weight, bias and eps and compute a layer norm."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    assert len(replace_norms_with_dyt(model)) == 5
    x = torch.randn(2, 5, 8)
    want = model.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), want)
