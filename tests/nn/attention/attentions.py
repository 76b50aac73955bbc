"""The table of the conformance suite: the ways in which people write attention, one line for each.

All compute the same function of the same weights, so that one twin checks them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nn.attention.oracles import Weights, anything

BATCH, LENGTH, WIDTH, HEADS = 2, 5, 8, 2
DIM = WIDTH // HEADS


class Projected(nn.Module):
    """Four projections; a subclass says how they become attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        q, k, v = (
            m(x).view(x.size(0), x.size(1), HEADS, DIM).transpose(1, 2)
            for m in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(self.mix(q, k, v, allowed, bias).transpose(1, 2).flatten(2))

    def mix(self, q, k, v, allowed, bias):
        raise NotImplementedError


class Fused(Projected):
    def mix(self, q, k, v, allowed, bias):
        mask = bias if allowed is None else allowed.unsqueeze(1)
        return F.scaled_dot_product_attention(q, k, v, mask)


class FusedPrescaled(Projected):
    def mix(self, q, k, v, allowed, bias):
        mask = bias if allowed is None else allowed.unsqueeze(1)
        return F.scaled_dot_product_attention(q * DIM**-0.5, k, v, attn_mask=mask, scale=1.0)


class Written(Projected):
    def mix(self, q, k, v, allowed, bias):
        scores = q @ k.transpose(-2, -1) / math.sqrt(DIM)
        if allowed is not None:
            scores = scores.masked_fill(~allowed.unsqueeze(1), float("-inf"))
        if bias is not None:
            scores = scores + bias
        return F.dropout(scores.softmax(-1), 0.0) @ v


class Prescaled(Projected):
    """As in timm without the fused kernel."""

    def mix(self, q, k, v, allowed, bias):
        q = q * DIM**-0.5
        scores = torch.matmul(q, k.mT)
        if allowed is not None:
            scores = torch.where(allowed.unsqueeze(1), scores, -1e9)
        if bias is not None:
            scores = bias + scores
        return torch.matmul(nn.Softmax(dim=-1)(scores), v)


class ScaledAfterTheMask(Projected):
    def mix(self, q, k, v, allowed, bias):
        scores = torch.matmul(q, k.permute(0, 1, 3, 2))
        if allowed is not None:
            scores = scores.masked_fill(allowed.unsqueeze(1).logical_not(), -torch.inf)
        if bias is not None:
            scores = scores + bias * math.sqrt(DIM)
        return torch.softmax(scores * (1 / math.sqrt(DIM)), dim=3) @ v


class InPlace(Projected):
    def mix(self, q, k, v, allowed, bias):
        scores = q @ k.mT
        scores /= math.sqrt(DIM)
        if allowed is not None:
            scores.masked_fill_(~allowed.unsqueeze(1), -torch.inf)
            scores[~allowed.unsqueeze(1).expand_as(scores)] = -torch.inf
        if bias is not None:
            scores += bias
        return (
            F.softmax(scores, dim=-1, dtype=torch.float32 if q.dtype != torch.float64 else None).to(q.dtype)
            @ v
        )


class Einsum(Projected):
    def mix(self, q, k, v, allowed, bias):
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * DIM**-0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        if bias is not None:
            scores = scores + bias
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)


class EinsumHeadsLast(Projected):
    """Keys first, heads behind the length, an ellipsis for the batch."""

    def mix(self, q, k, v, allowed, bias):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = torch.einsum("...shd,...thd->...hts", k, q).div(math.sqrt(DIM))
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        if bias is not None:
            scores = scores.add(bias)
        return torch.einsum("bhts,bshd->bhtd", scores.softmax(dim=-1), v)


class ByName(Projected):
    """Operands by name; a scale for each head, as in Swin V2."""

    def mix(self, q, k, v, allowed, bias):
        q = torch.reshape(input=torch.mul(q, other=0.25), shape=q.shape)
        scale = torch.full((HEADS, 1, 1), 4 * DIM**-0.5, dtype=q.dtype)
        scores = torch.mul(input=torch.matmul(q, other=k.mT), other=scale)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        if bias is not None:
            scores = scores + bias
        weights = torch.clamp(input=scores.softmax(-1), min=0.0)
        return torch.matmul(input=weights, other=v)


class FoldedBmm(Projected):
    """As in BLOOM: heads are in the batch for the product, and out of it for the mask."""

    def mix(self, q, k, v, allowed, bias):
        q, k, v = (t.reshape(-1, LENGTH, DIM) for t in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(-1, HEADS, LENGTH, LENGTH) * (1 / math.sqrt(DIM))
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        if bias is not None:
            scores = scores + bias
        weights = F.softmax(scores.view(-1, LENGTH, LENGTH), dim=-1)
        return torch.bmm(weights, v).view(-1, HEADS, LENGTH, DIM)


class Baddbmm(Projected):
    def mix(self, q, k, v, allowed, bias):
        q, k, v = (t.reshape(-1, LENGTH, DIM) for t in (q, k, v))
        added = torch.zeros(len(q), LENGTH, LENGTH, dtype=q.dtype)
        if allowed is not None:
            added = added.masked_fill(~allowed.repeat_interleave(HEADS, 0), -torch.inf)
        if bias is not None:
            added = added + bias
        scores = torch.baddbmm(added, q, k.mT, beta=1, alpha=DIM**-0.5)
        return torch.bmm(scores.view(-1, HEADS, LENGTH, LENGTH).softmax(-1).flatten(0, 1), v).view(
            -1, HEADS, LENGTH, DIM
        )


class StableByHand(Projected):
    """Subtracts the maximum of the row, which the softmax does not see and the signal must not either."""

    def mix(self, q, k, v, allowed, bias):
        scores = q @ k.mT * DIM**-0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed.unsqueeze(1), -torch.inf)
        if bias is not None:
            scores = scores + bias
        scores = scores - scores.amax(-1, keepdim=True).detach()
        return scores.softmax(-1) @ v


class Multihead(nn.Module):
    def __init__(self, need_weights: bool, average: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x, allowed=None, bias=None):
        mask = bias if allowed is None else ~allowed.repeat_interleave(HEADS, 0)
        return self.attn(x, x, x, attn_mask=mask, need_weights=self.need_weights)[0]


class SeparateMultihead(nn.Module):
    """kdim and vdim given: three weights instead of one packed."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=WIDTH, vdim=WIDTH)
        self.attn._qkv_same_embed_dim = False
        packed = self.attn.in_proj_weight
        for name, part in zip("qkv", packed.detach().chunk(3), strict=True):
            self.attn.register_parameter(f"{name}_proj_weight", nn.Parameter(part.clone()))
        self.attn.register_parameter("in_proj_weight", None)

    def forward(self, x, allowed=None, bias=None):
        mask = bias if allowed is None else ~allowed.repeat_interleave(HEADS, 0)
        return self.attn(x, x, x, attn_mask=mask)[0]


class EncoderLayer(nn.Module):
    """Around the attention: x + attention(x), then norms and a feed-forward net whose last weight is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4, dropout=0.0, batch_first=True)
        nn.init.zeros_(self.layer.linear2.weight)

    @property
    def attn(self):
        return self.layer.self_attn

    def forward(self, x, allowed=None, bias=None):
        mask = bias if allowed is None else ~allowed.repeat_interleave(HEADS, 0)
        return self.layer(x, src_mask=mask)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    training: bool = True
    any_length: bool = True  # takes sequences without a token

    def make(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(5)
        module = self.build()
        for name, parameter in module.named_parameters():
            if "norm" not in name and "linear" not in name:
                nn.init.normal_(parameter, std=0.7)
        return module.to(dtype).train(self.training)


CASES = (
    Case("fused", Fused),
    Case("fused_prescaled", FusedPrescaled),
    Case("written", Written),
    Case("prescaled", Prescaled),
    Case("scaled_after_the_mask", ScaledAfterTheMask),
    Case("in_place", InPlace),
    Case("einsum", Einsum),
    Case("einsum_heads_last", EinsumHeadsLast),
    Case("by_name", ByName),
    Case("folded_bmm", FoldedBmm, any_length=False),
    Case("baddbmm", Baddbmm, any_length=False),
    Case("stable_by_hand", StableByHand, any_length=False),
    Case("multihead_weights", lambda: Multihead(True)),
    Case("multihead_weights_eval", lambda: Multihead(True), training=False),
    Case("multihead_fused", lambda: Multihead(False)),
    Case("multihead_fused_eval", lambda: Multihead(False), training=False),
    Case("multihead_separate", SeparateMultihead),
    Case("encoder_layer", EncoderLayer),
    Case("encoder_layer_eval", EncoderLayer, training=False),
)


def weights_of(module: nn.Module) -> Weights:
    if isinstance(module, Projected):
        parts = [module.q_proj, module.k_proj, module.v_proj, module.o_proj]
        return Weights(*(anything(p.weight) for p in parts), *(anything(p.bias) for p in parts))
    attn = module.attn
    if attn.in_proj_weight is None:
        qkv = [anything(w) for w in (attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight)]
    else:
        qkv = [anything(w) for w in attn.in_proj_weight.chunk(3)]
    biases = [anything(b) for b in attn.in_proj_bias.chunk(3)]
    return Weights(*qkv, anything(attn.out_proj.weight), *biases, anything(attn.out_proj.bias))


def around(module: nn.Module, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The output of the module, from that of its attention."""
    if not isinstance(module, EncoderLayer):
        return out
    y = x + out
    for norm in (module.layer.norm1, module.layer.norm2):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + norm.eps)
        y = y + (anything(module.layer.linear2.bias) if norm is module.layer.norm1 else 0.0)
    return y


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)


def masks(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """No mask; a causal one with a padded key; a bias with -inf in it."""
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if kind == "none":
        return {}
    if kind == "bool":
        allowed = causal.repeat(BATCH, 1, 1)
        allowed[1, 3:, 2] = False
        return {"allowed": allowed}
    bias = torch.randn(LENGTH, LENGTH, generator=torch.Generator().manual_seed(9)).masked_fill(
        ~causal, -torch.inf
    )
    return {"bias": bias.to(dtype)}


MASKS = ("none", "bool", "float")
