"""The table of the conformance suite: one line for each builder, or for one of its ways. A new one joins by a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.nn import models as m
from steadygrad.nn.norm import LayerNormGRU, LayerNormLSTM
from steadygrad.nn.residual import GRUGate, LayerScale, SkipInit

PLAIN = ("auto", "xavier_normal", "he_normal", "orthogonal", "lsuv", "gpt2")
RESIDUAL = ("fixup", "skipinit")
TRANSFORMER = ("t_fixup", "deepnorm")


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[..., nn.Module]  # called with depth=, and activation= where it takes one
    example: tuple[Tensor, ...]
    out: tuple[int, ...]  # shape of the output without the batch
    layers: Callable[[int], int]  # weights with two dimensions or more in a net of this depth
    schemes: tuple[str, ...]  # of init.initialise
    branches: int | None = (
        None  # residual branches that init.follow sees for each step of depth; None: not asked
    )
    deep: bool = True  # holds at depth 200
    activates: bool = True  # takes activation=

    def net(self, depth: int = 3, **options: Any) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build(depth=depth, **options)


def _numbers(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


def _tokens(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1)),)


def _schemes(is_plain_case: bool, *more: str) -> tuple[str, ...]:
    """All of them for the plain case of a builder; for its other ways what depends on the way."""
    return (*(PLAIN if is_plain_case else PLAIN[:1]), *more)


def _mlp(name: str, build: Callable[..., nn.Module], **options: Any) -> Case:
    one_a_block = build in (m.mlp, m.dense_mlp)
    residual = build is m.residual_mlp
    return Case(
        name,
        partial(build, 5, 3, **options),
        _numbers(32, 5),
        (3,),
        lambda depth: depth + 1 if one_a_block else 2 * depth + 2 + (6 * depth if "gate" in options else 0),
        _schemes(name == build.__name__, *(RESIDUAL if residual else ())),
        branches=(1 if residual and "gate" not in options else None),
        deep=build is not m.mlp,
    )


def _images(
    name: str, build: Callable[..., nn.Module], shape: tuple[int, ...] = (8, 1, 8, 8), **options: Any
) -> Case:
    residual = build is m.resnet
    return Case(
        name,
        partial(build, shape[1], 4, **options),
        _numbers(*shape),
        (4,),
        lambda depth: 2 * depth + 4,  # stem, head, and two projections or transitions
        _schemes(name == build.__name__, *(RESIDUAL if residual else ())),
        branches=1 if residual else None,
        deep=residual,
    )


def _transformer(
    name: str,
    build: Callable[..., nn.Module],
    example: tuple[Tensor, ...],
    out: tuple[int, ...],
    **options: Any,
) -> Case:
    crosses = options.get("cross_attention", False)
    headless = options.get("tie_weights", False) or options.get("num_classes", 1) is None
    return Case(
        name,
        partial(build, d_model=8, num_heads=2, max_len=16, **options),
        example,
        out,
        lambda depth: (10 if crosses else 6) * depth + (2 if headless else 3),
        _schemes(name in ("encoder", "decoder_memory"), *RESIDUAL, *TRANSFORMER),
        branches=3 if crosses else 2,
    )


def _recurrent(name: str, build: Callable[..., nn.Module], **options: Any) -> Case:
    stacked = build is m.stacked_recurrent
    by_hand = options.get("cell") in (LayerNormLSTM, LayerNormGRU)  # init sees no branch in an unrolled loop
    residual = not stacked and not by_hand
    return Case(
        name,
        partial(build, 3, 2, hidden_size=8, **options),
        _numbers(16, 5, 3),
        (2,),
        lambda depth: 2 * depth + 2,
        _schemes("cell" not in options, "orthogonal_recurrent", *(RESIDUAL if residual else ())),
        branches=1 if residual else None,
        deep=not stacked,
        activates=False,
    )


_ENCODER = partial(
    _transformer, build=m.transformer_encoder, example=_tokens(6, 7), out=(4,), num_classes=4, vocab_size=11
)
_MEMORY = _tokens(6, 7) + _numbers(6, 4, 8)

BUILDERS = (
    _mlp("mlp", m.mlp, width=16),
    _mlp("mlp_norm", m.mlp, width=16, norm=nn.LayerNorm, dropout=0.1),
    _mlp("residual_mlp", m.residual_mlp, width=16),
    _mlp("residual_mlp_post", m.residual_mlp, width=16, placement="post"),
    _mlp("residual_mlp_sandwich", m.residual_mlp, width=16, placement="sandwich", norm=nn.RMSNorm),
    _mlp("residual_mlp_fixed", m.residual_mlp, width=16, placement=None, scale=1 / math.sqrt(400)),
    _mlp("residual_mlp_skipinit", m.residual_mlp, width=16, placement=None, scale=SkipInit),
    _mlp("residual_mlp_layer_scale", m.residual_mlp, width=16, scale=partial(LayerScale, init_value=1e-2)),
    _mlp("residual_mlp_drop_path", m.residual_mlp, width=16, drop_path=0.5, dropout=0.1, norm=nn.BatchNorm1d),
    _mlp("residual_mlp_gru_gate", m.residual_mlp, width=16, gate=GRUGate),
    _mlp("highway_mlp", m.highway_mlp, width=16, gate_bias=-5.0),
    _mlp("dense_mlp", m.dense_mlp, growth=2),
    _mlp("dense_mlp_recomputed", m.dense_mlp, growth=2, norm=nn.LayerNorm, memory_efficient=True),
    _images("resnet", m.resnet, width=4),
    _images("resnet_skipinit", m.resnet, width=4, norm=None, scale=SkipInit),
    _images(
        "resnet_layer_scale",
        m.resnet,
        (8, 3, 5, 9),
        width=4,
        norm=partial(nn.GroupNorm, 2),
        scale=LayerScale,
        drop_path=0.2,
    ),
    _images("densenet", m.densenet, growth=4),
    _images("densenet_recomputed", m.densenet, (8, 3, 5, 9), growth=4, dropout=0.1, memory_efficient=True),
    _ENCODER("encoder"),
    _ENCODER("encoder_sandwich", placement="sandwich", norm=nn.RMSNorm, dropout=0.1, drop_path=0.1),
    _ENCODER("encoder_sub_norm", sub_norm=nn.LayerNorm),
    _ENCODER("encoder_deepnorm", placement="post", skip_scale=400**0.25),
    _ENCODER("encoder_rezero", placement=None, scale=SkipInit),
    _transformer(
        "encoder_numbers", m.transformer_encoder, _numbers(6, 7, 5), (7, 8), in_features=5, num_classes=None
    ),
    _transformer("decoder", m.transformer_decoder, _tokens(6, 7), (7, 11), vocab_size=11),
    _transformer(
        "decoder_tied",
        m.transformer_decoder,
        _tokens(6, 7),
        (7, 11),
        vocab_size=11,
        tie_weights=True,
        scale=LayerScale,
    ),
    _transformer(
        "decoder_memory", m.transformer_decoder, _MEMORY, (7, 11), vocab_size=11, cross_attention=True
    ),
    _transformer(
        "decoder_numbers", m.transformer_decoder, _numbers(6, 7, 5), (7, 5), in_features=5, dropout=0.1
    ),
    _recurrent("stacked_rnn", m.stacked_recurrent, cell=nn.RNN),
    _recurrent("stacked_lstm", m.stacked_recurrent, cell=nn.LSTM, pool="mean"),
    _recurrent("residual_rnn", m.residual_rnn),
    _recurrent(
        "residual_rnn_relu", m.residual_rnn, cell=partial(nn.RNN, nonlinearity="relu"), placement="sandwich"
    ),
    _recurrent("residual_lstm", m.residual_lstm, pool="mean", drop_path=0.1),
    _recurrent("residual_gru", m.residual_gru, placement=None, scale=SkipInit),
    _recurrent("residual_layer_norm_lstm", m.residual_lstm, cell=LayerNormLSTM),
    _recurrent("residual_layer_norm_gru", m.residual_gru, cell=LayerNormGRU, placement="post"),
)
