"""A net of each kind that the recipes are for, too deep to train well as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad import recipes


def plain_mlp(depth: int = 30, width: int = 32) -> nn.Module:
    hidden = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(64, width), *hidden, nn.Linear(width, 10))


def plain_conv(depth: int = 16, width: int = 8) -> nn.Module:
    hidden = [m for _ in range(depth) for m in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, padding=1)]
    return nn.Sequential(*stem, *hidden, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * width, 10))


class LSTMNet(nn.Module):
    """Digits row by row, through stacked LSTMs."""

    def __init__(self, num_layers: int = 8, width: int = 24) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, num_layers, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unflatten(1, (8, 8)))[0][:, -1])


class TransformerNet(nn.Module):
    """Digits row by row, through torch's post-norm layers."""

    def __init__(self, depth: int = 12, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.zeros(8, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.unflatten(1, (8, 8))) + self.place).mean(1))


@dataclass(frozen=True)
class Kind:
    name: str
    recipe: Callable[..., recipes.Recipe]
    model: Callable[[], nn.Module]
    settings: dict[str, Any]


KINDS = (
    Kind("deep_mlp", recipes.deep_mlp, plain_mlp, {}),
    Kind("conv_net", recipes.conv_net, plain_conv, {}),
    Kind("recurrent", recipes.recurrent, LSTMNet, {"lr": 5e-3}),
    Kind("transformer", recipes.transformer, TransformerNet, {"lr": 3e-3}),
)
