"""Four small nets, and what they learn: the digits, and a text whose next letter follows from the two before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from steadygrad.nn.models import mlp
from studies.common import CLASSES, digits
from studies.training import Batch, digit_batches

LETTERS, LENGTH, BATCH = 16, 16, 24


class DigitLSTM(nn.Module):
    """The eight rows of a digit, one after the other, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, 2, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64) to (B, 10)."""
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])


class LetterTransformer(nn.Module):
    """Two pre-norm layers that tell the next letter."""

    def __init__(self, d_model: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, d_model)
        self.place = nn.Embedding(LENGTH, d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, 2, 2 * d_model, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.head = nn.Linear(d_model, LETTERS)

    def forward(self, letters: Tensor) -> Tensor:
        """(B, T) to (B T, letters)."""
        x = self.embed(letters) + self.place(torch.arange(letters.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(letters.shape[1])
        return self.head(self.layers(x, mask, is_causal=True)).flatten(0, 1)


def cnn() -> nn.Module:
    """Four convolutions without a norm."""
    widths = [(1, 8), (8, 8), (8, 16), (16, 16)]
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for i, (given, made) in enumerate(widths):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
        if i == 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {  # torch's own weights
    "MLP": lambda: mlp(64, CLASSES, width=48, depth=12),
    "CNN": cnn,
    "LSTM": DigitLSTM,
    "Transformer": LetterTransformer,
}


def guess(net: str) -> float:
    """The loss of who knows nothing."""
    return math.log(LETTERS if net == "Transformer" else CLASSES)


def feed(net: str, steps: int, seed: int) -> Iterator[Batch]:
    """Batches for a net."""
    return (
        islice(letter_batches(seed), steps)
        if net == "Transformer"
        else digit_batches(digits(), 64, steps, seed)
    )


def letter_batches(seed: int) -> Iterator[Batch]:
    """Texts in which two letters choose the next, and in one of ten places another one; 0.47 nats cannot be known."""
    rule = torch.randint(LETTERS, (LETTERS, LETTERS, 2), generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    while True:
        text = torch.randint(LETTERS, (BATCH, LENGTH + 1), generator=generator)
        for i in range(2, LENGTH + 1):
            other = (torch.rand(BATCH, generator=generator) < 0.1).long()
            text[:, i] = rule[text[:, i - 2], text[:, i - 1], other]
        yield text[:, :-1], text[:, 1:].flatten()
