"""Healthy: recurrent networks and Transformers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    Recurrent,
    TransformerLM,
    adding,
    cross_entropy,
    eval_error,
    generator,
    integer,
    log_uniform,
    recent_sum,
    squared_error,
    tokens,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


class EmbeddedLSTM(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.body = Recurrent(width, width, vocabulary, every_step=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.embedding(x))


@healthy(net="rnn")
def lstm_tokens(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A small language model; 15 to 25 % of its tokens are noise, so the loss stays high."""
    noise, lr = uniform(random, 0.15, 0.25), log_uniform(random, 3e-3, 1e-2)
    data = tokens(seed, length=12, noise=noise)
    model = EmbeddedLSTM(16, 32)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        cross_entropy,
        data.batches(seed, 32),
        steps=250,
        score=eval_error(model, data),
        target=0.45,
        facts={"lr": lr, "noise": noise},
    )


@healthy(net="rnn")
def tanh_rnn(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A plain RNN whose answer is in the last five of its steps: gradients die out backwards, and may."""
    length, lr = integer(random, 20, 40), log_uniform(random, 1e-3, 4e-3)
    data = recent_sum(seed, length)
    model = Recurrent(2, 32, 1, cell=nn.RNN, gain=0.9)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        squared_error,
        data.batches(seed, 32),
        steps=300,
        score=unexplained(model, data),
        target=0.3,
        facts={"lr": lr, "length": length},
    )


@healthy(net="rnn", blind=True)
def gru_adding(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The adding problem: a long stretch at the loss of the mean, then a fall."""
    length, lr = integer(random, 12, 18), log_uniform(random, 5e-3, 1e-2)
    data = adding(seed, length)
    model = Recurrent(2, 32, 1, cell=nn.GRU)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        squared_error,
        data.batches(seed, 32),
        steps=400,
        score=unexplained(model, data),
        target=0.5,
        facts={"lr": lr, "length": length},
    )


@healthy(net="transformer")
def pre_ln_transformer(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    data, lr, depth = tokens(seed), log_uniform(random, 1e-3, 3e-3), integer(random, 2, 4)
    model = TransformerLM(depth=depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.01)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed, 32),
        steps=150,
        score=eval_error(model, data),
        target=0.45,
        facts={"lr": lr, "depth": depth},
    )


@healthy(net="transformer", blind=True)
def post_ln_warmup(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """LayerNorm after the add, made trainable by a warm-up: the learning rate grows sixtyfold and more."""
    data, lr, warmup = tokens(seed), log_uniform(random, 1e-3, 2e-3), integer(random, 60, 100)
    model = TransformerLM(depth=3, norm="post")
    optimizer = torch.optim.Adam(model.parameters(), lr)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed, 32),
        steps=180,
        score=eval_error(model, data),
        target=0.45,
        scheduler=LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / warmup)),
        facts={"lr": lr, "warmup": warmup},
    )


class MaskedScores(nn.Module):
    """Logits of queries and keys, -inf for keys that are padding."""

    def forward(self, q: Tensor, k: Tensor, padding: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return logits.masked_fill(padding[:, None], -math.inf)


class PaddedClassifier(nn.Module):
    """Tokens (B, T), 0 for padding, to (B, classes): one attention layer, the mean over what is no padding."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.scores = MaskedScores()
        self.softmax = nn.Softmax(-1)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        padding, z = x == 0, self.embedding(x)
        z = self.norm(z + self.softmax(self.scores(self.q(z), self.k(z), padding)) @ self.v(z))
        here = (~padding).float()[..., None]
        return self.last((z * here).sum(1) / here.sum(1))


@healthy(net="transformer")
def padded_attention(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A module whose outputs hold -inf by intention, in every batch: masked keys before the softmax."""
    lr, length = log_uniform(random, 3e-3, 1e-2), integer(random, 12, 20)
    special = torch.randperm(11, generator=generator(seed, 3))[:2] + 1

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which of two special tokens is more frequent, in sequences of 4 to ``length`` tokens."""
        x = torch.randint(1, 12, (count, length), generator=g)
        ends = torch.randint(4, length + 1, (count, 1), generator=g)
        x = torch.where(torch.arange(length) < ends, x, torch.zeros_like(x))
        return x, ((x == special[0]).sum(1) > (x == special[1]).sum(1)).long()

    test = draw(400, generator(seed, 10**6))
    model = PaddedClassifier(12, 24, 2)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        cross_entropy,
        lambda i: draw(32, generator(seed, i)),
        steps=300,
        score=lambda: float((model(test[0]).argmax(1) != test[1]).float().mean()),
        target=0.12,
        facts={"lr": lr, "length": length},
    )


@healthy(net="rnn")
def open_forget_gates(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Forget gates shut open by a bias of 4 to 6: saturated by design, so that the memory is long."""
    bias, lr = uniform(random, 4.0, 6.0), log_uniform(random, 3e-3, 1e-2)
    width, length = 32, integer(random, 10, 16)
    model = Recurrent(2, width, 2)
    with torch.no_grad():
        model.rnn.bias_ih_l0[width : 2 * width] = bias

    def draw(count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """The class is the sign of the first value; all later ones are noise."""
        x = torch.randn(count, length, 2, generator=g)
        y = (x[:, 0, 0] > 0).long()
        x[:, :, 1] = F.one_hot(torch.tensor(0), length)
        return x, y

    test = draw(400, generator(seed, 10**6))
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        cross_entropy,
        lambda i: draw(32, generator(seed, i)),
        steps=300,
        score=lambda: float((model(test[0]).argmax(1) != test[1]).float().mean()),
        target=0.15,
        facts={"lr": lr, "bias": bias, "length": length},
    )
