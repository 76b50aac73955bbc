"""Attention against logits and weights computed directly."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.graph.attention import read_attention
from steadygrad.graph.walk import Graph
from steadygrad.graph.weights import find_uses

B, H, L, D = 2, 3, 7, 4


def attention(root, model=None):
    graph = Graph([root.sum()])
    names = {id(p): n for n, p in model.named_parameters()} if model is not None else {}
    return [(names.get(key, ""), stats) for key, stats in read_attention(graph, find_uses(graph))]


def qkv(*shape, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(shape or (B, H, L, D)).requires_grad_().sinh() for _ in range(3)]


def expected(logits, mask=None):
    """Largest |logit| that is no mask, and mean entropy over log(keys)."""
    masked = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    p = masked.double().softmax(-1)
    rows = p.reshape(-1, p.shape[-1])
    rows = rows[~rows.isnan().any(-1)]
    entropy = -(rows * rows.clamp_min(1e-300).log()).sum(-1).mean().item() / math.log(p.shape[-1])
    return masked[masked > -1e4].abs().max().item(), entropy


CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
PADDING = torch.arange(L) < torch.tensor([5, 3])[:, None]
MASKS = {
    "none": (None, {}),
    "causal": (CAUSAL, {"is_causal": True}),
    "boolean": (CAUSAL, {"attn_mask": CAUSAL}),
    "boolean, per sample": (PADDING[:, None, None], {"attn_mask": PADDING[:, None, None]}),
    "float": (CAUSAL, {"attn_mask": torch.zeros(L, L).masked_fill(~CAUSAL, -math.inf)}),
    "finite float": (CAUSAL, {"attn_mask": torch.zeros(1, 1, L, L).masked_fill(~CAUSAL, -1e9)}),
}


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("mask", MASKS)
def test_fused(mask, scale):
    allowed, given = MASKS[mask]
    q, k, v = qkv()
    ((_, a),) = attention(F.scaled_dot_product_attention(q, k, v, scale=scale, **given))
    logits = (q @ k.mT).detach() * (scale or D**-0.5)
    assert (a.max_logit, a.entropy) == pytest.approx(expected(logits, allowed), rel=1e-4)
    assert a.keys == L


def test_fused_with_a_bias_and_other_lengths():
    q, k, v = qkv()
    bias = torch.randn(1, H, L, 5)
    ((_, a),) = attention(F.scaled_dot_product_attention(q, k[:, :, :5], v[:, :, :5], attn_mask=bias))
    logits = (q @ k[:, :, :5].mT).detach() * D**-0.5 + bias
    assert (a.max_logit, a.entropy) == pytest.approx(expected(logits), rel=1e-4)
    assert a.keys == 5


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_grouped_queries_and_dropout(dropout):
    q, k, v = qkv(B, 4, L, D)
    k, v = k[:, :2], v[:, :2]
    found = attention(F.scaled_dot_product_attention(q, k, v, enable_gqa=True, dropout_p=dropout))
    logits = (q @ k.repeat_interleave(2, 1).mT).detach() * D**-0.5
    assert (found[0][1].max_logit, found[0][1].entropy) == pytest.approx(expected(logits), rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention(weights, masked, dropout):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, dropout=dropout)
    x = torch.randn(3, L, 8, requires_grad=True) * 4
    mask = ~CAUSAL if masked else None
    out, _ = layer(x, x, x, need_weights=weights, attn_mask=mask)
    ((name, a),) = attention(out, layer)
    q, k, _ = (x @ layer.in_proj_weight.t()).chunk(3, -1)
    q, k = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k))
    logit, entropy = expected((q @ k.mT).detach() / 2, CAUSAL if masked else None)
    assert a.entropy == pytest.approx(entropy, rel=1e-4) and (a.keys, name) == (L, "in_proj_weight")
    # Written out, a logit behind a mask cannot be told from others.
    if not masked or not weights and dropout == 0:
        assert a.max_logit == pytest.approx(logit, rel=1e-4)
    else:
        assert a.max_logit >= logit * 0.9999


def by_hand(q, k, v, form):
    if form == "matmul":
        return (q @ k.mT / D**0.5).softmax(-1) @ v
    if form == "scaled query":
        return F.dropout(((q * D**-0.5) @ k.mT).softmax(-1), 0.2) @ v
    if form == "mask filled":
        return (q @ k.mT * D**-0.5).masked_fill(CAUSAL.logical_not(), -1e9).softmax(-1) @ v
    if form == "bias first":
        return (torch.zeros(L, L, requires_grad=True).sin() + q @ k.mT / D**0.5).softmax(-1) @ v
    if form == "einsum":
        p = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(D**-0.5).softmax(dim=3)
        return torch.einsum("bhqk,bhkd->bhqd", p, v)
    if form == "keys in front":
        return (k @ q.mT / D**0.5).softmax(-2).mT @ v
    return (q @ k.mT / D**0.5).half().float().softmax(-1) @ v


@pytest.mark.parametrize(
    "form", ["matmul", "scaled query", "mask filled", "bias first", "einsum", "keys in front", "casts"]
)
def test_written_by_hand(form):
    q, k, v = qkv()
    ((_, a),) = attention(by_hand(q, k, v, form))
    logits = (q @ k.mT).detach() * D**-0.5
    logit, _ = expected(logits)
    assert (a.max_logit, a.keys) == (pytest.approx(logit, rel=1e-4), L)
    assert a.entropy == pytest.approx(
        expected(logits, CAUSAL if form == "mask filled" else None)[1], rel=1e-3
    )


def test_without_heads_or_batches():
    q, k, v = qkv(L, D)
    ((_, a),) = attention((q @ k.t()).softmax(1) @ v)
    assert (a.max_logit, a.entropy) == pytest.approx(expected((q @ k.t()).detach()), rel=1e-4)


def test_a_cap_hides_the_logits():
    q, k, v = qkv()
    ((_, a),) = attention((5 * torch.tanh(q @ k.mT / 5)).softmax(-1) @ v)
    assert math.isnan(a.max_logit)
    assert a.entropy == pytest.approx(expected((5 * torch.tanh(q @ k.mT / 5)).detach())[1], rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_one_key_takes_all(fused):
    q, k, v = qkv()
    q, k = q * 100, k * 100
    out = F.scaled_dot_product_attention(q, k, v) if fused else (q @ k.mT / 2).softmax(-1) @ v
    ((_, a),) = attention(out)
    assert a.max_logit > 1e4 and a.entropy == pytest.approx(0, abs=1e-3)


def test_one_key_says_nothing():
    q, k, v = qkv()
    ((_, a),) = attention(F.scaled_dot_product_attention(q, k[:, :, :1], v[:, :, :1]))
    assert math.isnan(a.entropy) and a.keys == 1


def test_rows_without_a_key_are_left_out():
    q, k, v = qkv()
    mask = torch.zeros(L, L).masked_fill(~CAUSAL, -math.inf)
    mask[2] = -math.inf
    ((_, a),) = attention(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    logits = (q @ k.mT).detach() / 2
    assert a.entropy == pytest.approx(expected(logits, mask == 0)[1], rel=1e-4)


def head(x):
    return nn.Linear(D, 5)(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: head(x).softmax(-1).log(),
        lambda x: head(x).softmax(-1) * torch.arange(5.0),
        lambda x: F.cross_entropy(head(x).flatten(0, 1), torch.zeros(B * L, dtype=torch.long)),
        lambda x: nn.Linear(5, 3, bias=False)(head(x).softmax(-1)),
        lambda x: nn.Linear(5, 3)(head(x).softmax(-1)),
    ],
    ids=["classifier", "expectation", "cross entropy", "product with a weight", "layer"],
)
def test_other_softmaxes(make):
    assert attention(make(torch.randn(B, L, D))) == []


def test_hooks_of_others_hide_it():
    q, k, v = qkv()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 1 / 0):
        out = F.scaled_dot_product_attention(q, k, v)
        written = (q @ k.mT).softmax(-1) @ v
    assert attention(out) == attention(written) == []
