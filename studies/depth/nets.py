"""The nets of the depth table, the initialisations that suit each, and where its first and last block are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.init import deepnorm_constants, forget_bias_, initialise
from steadygrad.nn import models
from steadygrad.nn.residual import Highway
from steadygrad.nn.residual.residual import Placement
from studies.common import CLASSES

WIDTH = 64
Init = Callable[[nn.Module, Tensor], object] | None  # None: what the builder gives, torch's default


def scheme(name: str, **options: float) -> Init:
    """An initialisation by ``initialise``."""
    return lambda model, x: initialise(model, x, name, **options)


def by_block(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Norm of the gradient of the first block's parameters and of the last's; of a plain net, its hidden layers."""
    if hasattr(model, "blocks"):
        blocks = list(model.blocks)
    elif hasattr(model, "layers"):
        blocks = list(model.layers)
    elif hasattr(model, "block"):
        blocks = list(model.block.layers)
    else:
        blocks = [m for m in model.modules() if isinstance(m, nn.Linear)][1:-1]
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    first, last = (_norm([p.grad for p in block.parameters()]) for block in (blocks[0], blocks[-1]))
    model.zero_grad()
    return first, last


def by_time(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Norm of the gradient with respect to the input at the first step and at the last."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return _norm([grad[:, 0]]), _norm([grad[:, -1]])


def _norm(grads: list[Tensor | None]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None))


@dataclass(frozen=True)
class Row:
    """A kind of net: how to build it at a depth, how to feed it, and which initialisations to try."""

    build: Callable[[int], nn.Module]
    feed: Callable[[Tensor, int], Tensor]  # digits (B, 64) and the depth -> input
    inits: dict[str, Init]
    norms: Callable[[nn.Module, Tensor, Tensor], tuple[float, float]] = by_block
    depths: tuple[int, ...] = (10, 50, 200, 1000)
    lr: Callable[[int], float] = lambda depth: min(
        1e-3, 0.05 / depth
    )  # each of L blocks moves the output by lr


def _flat(x: Tensor, depth: int) -> Tensor:
    return x


def _rows(x: Tensor, depth: int) -> Tensor:
    return x.unflatten(-1, (8, 8))


def _stretched(x: Tensor, length: int) -> Tensor:
    """The 64 pixels one after the other, each held for as long as it takes to make ``length`` steps."""
    return x[:, torch.arange(length) * 64 // length].unsqueeze(-1)


class LastOfLSTM(nn.Module):
    """One LSTM read off at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _transformer(depth: int, placement: Placement | None, skip_scale: float = 1.0) -> nn.Module:
    return models.transformer_encoder(
        num_classes=CLASSES,
        depth=depth,
        d_model=32,
        num_heads=4,
        in_features=8,
        max_len=8,
        dim_feedforward=64,
        placement=placement,
        skip_scale=skip_scale,
    )


def _deepnorm(depth: int) -> nn.Module:
    constants = deepnorm_constants(depth, 0).encoder
    assert constants is not None
    return _transformer(depth, "post", constants.alpha)


def _carry(model: nn.Module, x: Tensor) -> None:
    """He's weights, and gates that open by 1 / depth at the start."""
    initialise(model, x, "he_normal")
    highways = [m for m in model.modules() if isinstance(m, Highway)]
    for layer in highways:
        nn.init.constant_(layer.gate.bias, -math.log(len(highways) - 1))


def _long_memory(model: nn.Module, x: Tensor) -> None:
    initialise(model, x)
    forget_bias_(model.lstm, math.log(x.shape[1]))  # type: ignore[arg-type]


PLAIN: dict[str, Init] = {
    "torch": None,
    "xavier": scheme("xavier_normal"),
    "he": scheme("he_normal"),
    "orthogonal": scheme("orthogonal"),
    "lsuv": scheme("lsuv"),
}
TANH = {"torch": None, "xavier": PLAIN["xavier"], "xavier, gain 5/3": scheme("xavier_normal", gain=5 / 3)}
RELU = {"torch": None, "xavier, gain 1": scheme("xavier_normal", gain=1.0), "he": PLAIN["he"]}
BOTH = {"orthogonal": PLAIN["orthogonal"], "lsuv": PLAIN["lsuv"]}
RESIDUAL: dict[str, Init] = {
    "torch": None,
    "he": scheme("he_normal"),
    "auto": scheme("auto"),
    "fixup": scheme("fixup"),
    "skipinit": scheme("skipinit"),
}
TRANSFORMER: dict[str, Init] = {
    "torch": None,
    "xavier": scheme("xavier_normal"),
    "auto": scheme("auto"),
    "gpt2": scheme("gpt2"),
    "skipinit": scheme("skipinit"),
    "t_fixup": scheme("t_fixup"),
}

ROWS: dict[str, Row] = {
    "plain MLP, tanh": Row(
        lambda depth: models.mlp(64, CLASSES, width=WIDTH, depth=depth, activation=nn.Tanh),
        _flat,
        TANH | BOTH,
    ),
    "plain MLP, ReLU": Row(
        lambda depth: models.mlp(64, CLASSES, width=WIDTH, depth=depth, activation=nn.ReLU),
        _flat,
        RELU | BOTH,
    ),
    "residual MLP": Row(
        lambda depth: models.residual_mlp(64, CLASSES, width=WIDTH, depth=depth, placement=None),
        _flat,
        RESIDUAL,
    ),
    "residual MLP, LayerNorm": Row(
        lambda depth: models.residual_mlp(64, CLASSES, width=WIDTH, depth=depth, placement="pre"),
        _flat,
        RESIDUAL,
    ),
    "highway MLP": Row(
        lambda depth: models.highway_mlp(64, CLASSES, width=WIDTH, depth=depth),
        _flat,
        {
            "torch": None,
            "he": PLAIN["he"],
            "orthogonal": PLAIN["orthogonal"],
            "he, gate bias -log depth": _carry,
        },
    ),
    "DenseNet": Row(
        lambda depth: models.dense_mlp(64, CLASSES, growth=4, depth=depth),
        _flat,
        {k: PLAIN[k] for k in ("torch", "xavier", "he", "lsuv")},
    ),
    "pre-norm Transformer": Row(
        lambda depth: _transformer(depth, "pre"),
        _rows,
        {k: TRANSFORMER[k] for k in TRANSFORMER if k != "t_fixup"},
    ),
    "post-norm Transformer": Row(
        lambda depth: _transformer(depth, "post"),
        _rows,
        {k: TRANSFORMER[k] for k in ("torch", "xavier", "auto")},
    ),
    "post-norm Transformer, DeepNorm": Row(_deepnorm, _rows, {"torch": None, "deepnorm": scheme("deepnorm")}),
    "Transformer without norm": Row(
        lambda depth: _transformer(depth, None),
        _rows,
        {k: TRANSFORMER[k] for k in ("torch", "auto", "skipinit", "t_fixup")},
    ),
    "LSTM": Row(
        lambda length: LastOfLSTM(),
        _stretched,
        {
            "torch": None,
            "auto": scheme("auto"),
            "auto, forget gate log T": _long_memory,
        },
        norms=by_time,
        depths=(100, 200, 500, 1000),
        lr=lambda length: 3e-3,
    ),
}
