"""Transformers of any depth: an encoder, and a decoder with or without a memory to attend to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steadygrad._check import count, fraction
from steadygrad.nn.models._parts import (
    Activation,
    Gate,
    Norm,
    Scale,
    block_rates,
    check_factories,
    ends_without_norm,
    residual,
)
from steadygrad.nn.models.attention import Attention
from steadygrad.nn.residual.residual import Placement, Residual


class TransformerLayer(nn.Module):
    """Attention, attention to a memory where there is one, and a feed-forward net, each in a `Residual`."""

    def __init__(self, attention: Residual, cross_attention: Residual | None, feed_forward: Residual) -> None:
        super().__init__()
        self.attention = attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def forward(
        self,
        input: Tensor,
        memory: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.attention(input, key_padding_mask=key_padding_mask)
        if self.cross_attention is not None:
            x = self.cross_attention(x, memory, key_padding_mask=memory_key_padding_mask)
        return self.feed_forward(x)


class TransformerNet(nn.Module):
    """An embedding with learned positions, Transformer layers, and a head: what the builders return.

    Called with tokens (B, T) or numbers (B, T, in_features), and with a memory (B, S, d_model) where the
    layers attend to one. The padding masks are bool, True at positions to leave out: from attention, and from
    the mean that a classifier takes.
    """

    def __init__(
        self,
        embedding: nn.Module,
        positions: nn.Embedding,
        dropout: float,
        layers: list[TransformerLayer],
        norm: nn.Module | None,
        head: nn.Module | None,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = positions
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self.pooled = pooled

    def forward(
        self,
        input: Tensor,
        memory: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        length, longest = input.shape[1], self.positions.num_embeddings
        if length > longest:
            raise ValueError(
                f"the input has {length} positions, the net {longest}: build it with max_len={length}"
            )
        self._check_memory(memory)
        x = self.embedding(input) + self.positions(torch.arange(length, device=input.device))
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(
                x,
                memory,
                key_padding_mask=key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
            )
        if self.norm is not None:
            x = self.norm(x)
        if self.pooled:
            x = _mean(x, key_padding_mask)
        return x if self.head is None else self.head(x)

    def _check_memory(self, memory: Tensor | None) -> None:
        first = self.layers[0]
        wanted = isinstance(first, TransformerLayer) and first.cross_attention is not None
        if wanted and memory is None:
            raise ValueError("this decoder attends to a memory: call it as decoder(input, memory)")
        if not wanted and memory is not None:
            raise ValueError(
                "this net has no layers that attend to a memory: build it with cross_attention=True, "
                "or leave the memory out"
            )


def transformer_encoder(
    *,
    num_classes: int | None,
    depth: int,
    d_model: int,
    num_heads: int,
    in_features: int | None = None,
    vocab_size: int | None = None,
    max_len: int = 512,
    dim_feedforward: int | None = None,
    activation: Activation = nn.GELU,
    placement: Placement | None = "pre",
    norm: Norm = nn.LayerNorm,
    sub_norm: Norm | None = None,
    scale: Scale = 1.0,
    skip_scale: float = 1.0,
    gate: Gate | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    bias: bool = True,
) -> TransformerNet:
    """A Transformer encoder with a classifier on top, or for use as the memory of a decoder.

        h_0 = D(E(x) + p),        h_l = F(A(h_(l-1))),        y = W mean_t N(h_depth) + b

    A attention and F the feed-forward net, each in a `Residual`, which has the equation of every placement;
    the last N for placement "pre" and "sandwich".

    When to use it: sequences of tokens or of numbers that are seen whole.

    Values in use: placement "pre" (GPT-2 and most since) without much warm-up; "post" for 6 to 12 layers with
    warm-up (Vaswani, BERT), or to 1000 with ``skip_scale=init.deepnorm_constants(depth, 0).encoder.alpha`` and
    ``init.initialise(scheme="deepnorm")`` (Wang 2022); None with ``scale=SkipInit`` (ReZero), or with
    ``init.initialise(scheme="t_fixup")``; ``scale=LayerScale`` and drop_path 0.1 and more (CaiT); sub_norm a
    layer norm (Magneto); dropout 0.1; dim_feedforward 4 d_model.

    Cost: about 12 depth d_model^2 parameters; attention grows as the square of the length.

    Args:
        num_classes: size of the output, at least 1; None for the sequence (B, T, d_model).
        depth: layers of attention and feed-forward net, at least 1.
        d_model: width, a multiple of num_heads.
        num_heads: of attention, at least 1.
        in_features: for input of numbers (B, T, in_features), embedded by a linear layer; or
        vocab_size: for input of tokens (B, T). One of the two.
        max_len: longest sequence, at least 1; positions are learned.
        dim_feedforward: units inside the feed-forward net; 4 d_model if left out.
        activation: makes an activation: a module class or a factory without arguments.
        placement: "pre", "post", "sandwich", or None for no norm.
        norm: makes a norm from ``d_model``.
        sub_norm: makes a further norm before the last projection of attention (from ``d_model``) and of the
            feed-forward net (from ``dim_feedforward``); with placement "pre" that is sub-LN. None for none.
        scale: of each branch: a number, `SkipInit`, `LayerScale`, or a factory called as ``(d_model, dim=-1)``.
        skip_scale: of the skip, finite: DeepNorm's alpha.
        gate: makes a gate from ``d_model`` (`GRUGate` and its kin) in place of the sum.
        dropout: after the embedding, on the attention weights, inside the feed-forward net, at the end of each
            branch, 0 to 1.
        drop_path: stochastic depth of the last layer, 0 to 1; it rises linearly up to there.
        bias: whether the linear layers have one (the head always).

    Returns a `TransformerNet` with torch's own initial weights. ``key_padding_mask`` (B, T) is True at padding.
    An empty batch gives an empty output; an inf or nan in a sequence stays visible in its output.

    Example:
        >>> net = transformer_encoder(num_classes=3, depth=4, d_model=16, num_heads=2, vocab_size=50)
        >>> net(torch.zeros(5, 7, dtype=torch.long)).shape
        torch.Size([5, 3])

    Source: Vaswani et al. (2017), section 3, https://arxiv.org/abs/1706.03762; the placement of the norm: Xiong
    et al. (2020), https://arxiv.org/abs/2002.04745; sub-LN: Wang et al. (2022, Magneto),
    https://arxiv.org/abs/2210.06423
    """
    embedding = _embedding(in_features, vocab_size, d_model)
    if num_classes is not None:
        count("num_classes", num_classes)
    layers = _layers(
        depth, drop_path, d_model, num_heads, dim_feedforward, activation, dropout, bias, False, False, sub_norm,
        placement=placement, norm=norm, scale=scale, gate=gate, skip_scale=skip_scale,
    )  # fmt: skip
    return TransformerNet(
        embedding,
        nn.Embedding(count("max_len", max_len), d_model),
        dropout,
        layers,
        norm(d_model) if ends_without_norm(placement) else None,
        None if num_classes is None else nn.Linear(d_model, num_classes),
        pooled=num_classes is not None,
    )


def transformer_decoder(
    *,
    depth: int,
    d_model: int,
    num_heads: int,
    in_features: int | None = None,
    vocab_size: int | None = None,
    cross_attention: bool = False,
    tie_weights: bool = False,
    max_len: int = 512,
    dim_feedforward: int | None = None,
    activation: Activation = nn.GELU,
    placement: Placement | None = "pre",
    norm: Norm = nn.LayerNorm,
    sub_norm: Norm | None = None,
    scale: Scale = 1.0,
    skip_scale: float = 1.0,
    gate: Gate | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    bias: bool = True,
) -> TransformerNet:
    """A causal Transformer that predicts the next token (or numbers) at each position; with a memory if wanted.

        h_0 = D(E(x) + p),        h_l = F(C(A(h_(l-1)), m)),        y_t = W N(h_depth)_t

    A causal attention, C attention to the memory m (``cross_attention=True`` only) and F the feed-forward net,
    each in a `Residual`, which has the equation of every placement; the last N for placement "pre" and
    "sandwich".

    When to use it: language models (decoder only); with a memory the second half of a translator, whose first
    is ``transformer_encoder(num_classes=None, ...)``.

    Values in use: as for `transformer_encoder`; decoder-only DeepNorm:
    ``skip_scale=init.deepnorm_constants(0, depth).decoder.alpha``; tie_weights True (GPT-2), False (Llama).

    Cost: about 12 depth d_model^2 parameters, 16 with a memory, and the two of size vocab_size d_model.

    Args:
        depth: layers, at least 1.
        d_model: width, a multiple of num_heads.
        num_heads: of attention, at least 1.
        in_features: for input of numbers (B, T, in_features); the output then has as many; or
        vocab_size: for input of tokens (B, T). One of the two.
        cross_attention: whether the layers attend to a memory; the net is then called with (input, memory).
        tie_weights: whether head and embedding are one parameter; tokens only.
        max_len: longest sequence, at least 1; positions are learned.
        dim_feedforward: units inside the feed-forward net; 4 d_model if left out.
        activation, placement, norm, sub_norm, scale, skip_scale, gate, dropout, drop_path, bias: as for
            `transformer_encoder`. The head has no bias.

    Returns a `TransformerNet` with torch's own initial weights, whose output is (B, T, vocab_size) or
    (B, T, in_features). An empty batch gives an empty output; an inf or nan at a position stays visible there
    and after it.

    Example:
        >>> net = transformer_decoder(depth=4, d_model=16, num_heads=2, vocab_size=50)
        >>> net(torch.zeros(5, 7, dtype=torch.long)).shape
        torch.Size([5, 7, 50])

    Source: Vaswani et al. (2017), section 3, https://arxiv.org/abs/1706.03762; decoder only: Radford et al.
    (2018), section 3.1, https://openai.com/research/language-unsupervised; tied weights: Press & Wolf (2017),
    https://arxiv.org/abs/1608.05859
    """
    embedding = _embedding(in_features, vocab_size, d_model)
    if tie_weights and vocab_size is None:
        raise ValueError(
            "tie_weights needs tokens: give vocab_size instead of in_features, or leave it False"
        )
    layers = _layers(
        depth, drop_path, d_model, num_heads, dim_feedforward, activation, dropout, bias, True, cross_attention,
        sub_norm, placement=placement, norm=norm, scale=scale, gate=gate, skip_scale=skip_scale,
    )  # fmt: skip
    head = nn.Linear(d_model, vocab_size or in_features or 0, bias=False)
    if tie_weights:
        assert isinstance(embedding, nn.Embedding)
        head.weight = embedding.weight
    return TransformerNet(
        embedding,
        nn.Embedding(count("max_len", max_len), d_model),
        dropout,
        layers,
        norm(d_model) if ends_without_norm(placement) else None,
        head,
        pooled=False,
    )


def _embedding(in_features: int | None, vocab_size: int | None, d_model: int) -> nn.Module:
    count("d_model", d_model)
    if (in_features is None) == (vocab_size is None):
        raise ValueError(
            f"give one of in_features (numbers) and vocab_size (tokens), got {in_features} and {vocab_size}"
        )
    if in_features is not None:
        return nn.Linear(count("in_features", in_features), d_model)
    assert vocab_size is not None
    return nn.Embedding(count("vocab_size", vocab_size), d_model)


def _layers(
    depth: int,
    drop_path: float,
    d_model: int,
    num_heads: int,
    dim_feedforward: int | None,
    activation: Activation,
    dropout: float,
    bias: bool,
    causal: bool,
    cross_attention: bool,
    sub_norm: Norm | None,
    **options: Any,
) -> list[TransformerLayer]:
    check_factories(activation=activation, sub_norm=sub_norm, norm=options["norm"], gate=options["gate"])
    fraction("dropout", dropout)
    units = 4 * d_model if dim_feedforward is None else count("dim_feedforward", dim_feedforward)

    def connected(fn: nn.Module, rate: float) -> Residual:
        return residual(fn, d_model, dropout=dropout, drop_path=rate, **options)

    def attention(causal: bool) -> Attention:
        return Attention(d_model, num_heads, dropout=dropout, bias=bias, causal=causal, norm=sub_norm)

    def feed_forward() -> nn.Sequential:
        inner = [activation()]
        if sub_norm is not None:
            inner.append(sub_norm(units))
        if dropout:
            inner.append(nn.Dropout(dropout))
        return nn.Sequential(
            nn.Linear(d_model, units, bias=bias), *inner, nn.Linear(units, d_model, bias=bias)
        )

    return [
        TransformerLayer(
            connected(attention(causal), rate),
            connected(attention(False), rate) if cross_attention else None,
            connected(feed_forward(), rate),
        )
        for rate in block_rates(depth, drop_path)
    ]


def _mean(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Over the positions that are not padding; 0 where all are."""
    if key_padding_mask is None:
        return x.mean(1)
    seen = ~key_padding_mask.unsqueeze(-1)
    return x.masked_fill(~seen, 0.0).sum(1) / seen.sum(1).clamp(min=1)
