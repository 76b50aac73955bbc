"""Transformers: attention logits, norms left out or in the wrong place, rates, masks, the head."""

from __future__ import annotations

import math

import torch
from numpy.random import RandomState
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    Data,
    TransformerLM,
    cross_entropy,
    eval_loss,
    integer,
    log_uniform,
    tokens,
    uniform,
)
from benchmarks.zoo.parts_sequences import FusedAttention, TorchAttention, with_attention
from benchmarks.zoo.training import Training


def language_model(
    model, optimizer, data: Data, seed, steps, target=1.6, loss=cross_entropy, **more
) -> Training:
    """Next-token cross-entropy: ln 16 = 2.77 for a guess, 0.79 with everything known."""
    return Training(
        model=model,
        optimizer=optimizer,
        loss=loss,
        batch=more.pop("batch", None) or data.batches(seed, 32),
        steps=steps,
        score=eval_loss(model, cross_entropy, data),
        target=target,
        **more,
    )


@failing("attention_logit_growth", net="transformer")
def attention_by_hand(random: RandomState, seed: int, fixed: bool) -> Training:
    """Queries and keys so large that each token looks at one other, chosen by chance."""
    depth, gain = integer(random, 2, 3), uniform(random, 12, 25)
    model = TransformerLM(depth=depth, qk_gain=1.0 if fixed else gain)
    optimizer = SGD(model.parameters(), lr=0.3, momentum=0.9)
    return language_model(model, optimizer, tokens(seed, lag=3), seed, 200, 2.1, facts={"gain": gain})


@failing("attention_logit_growth", net="transformer", blind=True)
def attention_fused(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 2, 3), uniform(random, 15, 40)
    model = TransformerLM(depth=depth)
    with_attention(model, lambda width, heads: FusedAttention(width, heads, 1.0 if fixed else gain))
    optimizer = Adam(model.parameters(), lr=3e-3)
    return language_model(model, optimizer, tokens(seed, lag=3), seed, 200, 1.7, facts={"gain": gain})


@failing("attention_logit_growth", net="transformer")
def attention_module(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, gain = integer(random, 2, 3), uniform(random, 15, 40)
    model = TransformerLM(depth=depth)
    with_attention(model, lambda width, heads: TorchAttention(width, heads, 1.0 if fixed else gain))
    optimizer = AdamW(model.parameters(), lr=3e-3)
    return language_model(model, optimizer, tokens(seed, lag=3), seed, 200, 1.7, facts={"gain": gain})


@failing("warmup_missing", "lr_too_large", net="transformer")
def post_norm_cold_start(random: RandomState, seed: int, fixed: bool) -> Training:
    """A deep post-norm net at full rate from the first step: it falls onto the token frequencies and stays."""
    rate = uniform(random, 0.01, 0.014)
    model = TransformerLM(depth=6, norm="post")
    data = tokens(seed)
    optimizer = Adam(model.parameters(), lr=rate)
    warmup = 60 if fixed else 1
    schedule = LambdaLR(optimizer, lambda i: min((i + 1) / warmup, 60 / max(i, 60)))
    return language_model(
        model,
        optimizer,
        data,
        seed,
        100,
        batch=data.batches(seed, 16),
        scheduler=schedule,
        facts={"lr": rate},
    )


@failing("lr_too_large", net="transformer")
def transformer_adam_rate(random: RandomState, seed: int, fixed: bool) -> Training:
    rate = log_uniform(random, 0.2, 1.0)
    model = TransformerLM(depth=3)
    optimizer = Adam(model.parameters(), lr=2e-3 if fixed else rate)
    return language_model(model, optimizer, tokens(seed), seed, 150, facts={"lr": rate})


@failing("lr_too_large", net="transformer", blind=True)
def transformer_adamw_peak(random: RandomState, seed: int, fixed: bool) -> Training:
    """A warm-up, but up to a rate that is far too large."""
    rate = log_uniform(random, 0.6, 2.0)
    model = TransformerLM(depth=3)
    optimizer = AdamW(model.parameters(), lr=3e-3 if fixed else rate, weight_decay=0.05)
    warmup = LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 40))
    return language_model(model, optimizer, tokens(seed), seed, 150, scheduler=warmup, facts={"lr": rate})


@failing("residual_accumulation", net="transformer")
def transformer_without_norm(random: RandomState, seed: int, fixed: bool) -> Training:
    depth, branch = integer(random, 8, 10), uniform(random, 1.0, 1.5)
    model = TransformerLM(depth=depth, norm="pre" if fixed else "none", branch_gain=branch)
    optimizer = Adam(model.parameters(), lr=2e-3)
    return language_model(model, optimizer, tokens(seed), seed, 100, facts={"depth": depth})


@failing("output_scale", net="transformer")
def transformer_head_large(random: RandomState, seed: int, fixed: bool) -> Training:
    """Sure of everything before the first step."""
    factor = log_uniform(random, 200, 800)
    model = TransformerLM(depth=2)
    if not fixed:
        with torch.no_grad():
            model.last.weight *= factor
    optimizer = Adam(model.parameters(), lr=2e-3)
    return language_model(model, optimizer, tokens(seed), seed, 120, where="last", facts={"factor": factor})


@failing("loss_reduction", net="transformer", blind=True)
def transformer_loss_sum(random: RandomState, seed: int, fixed: bool) -> Training:
    """Summed over batch and tokens, at a rate that suits the mean."""
    rate = uniform(random, 0.1, 0.3)
    model = TransformerLM(depth=2)
    optimizer = SGD(model.parameters(), lr=rate, momentum=0.9)

    def summed(model, batch):
        x, y = batch
        return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")

    loss = cross_entropy if fixed else summed
    return language_model(model, optimizer, tokens(seed), seed, 150, loss=loss, facts={"lr": rate})


@failing("momentum_too_large", net="transformer", blind=True)
def transformer_momentum(random: RandomState, seed: int, fixed: bool) -> Training:
    momentum, rate = uniform(random, 0.993, 0.998), uniform(random, 0.2, 0.4)
    model = TransformerLM(depth=2)
    optimizer = SGD(model.parameters(), lr=rate, momentum=0.9 if fixed else momentum)
    return language_model(model, optimizer, tokens(seed), seed, 150, facts={"momentum": momentum, "lr": rate})


class Padded(nn.Module):
    """A bag of tokens, pooled by attention over those that are not padding; (tokens, lengths) to class logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 32)
        self.score = nn.Linear(32, 1)
        self.last = nn.Linear(32, 4)

    def forward(self, tokens, lengths):
        z = self.embedding(tokens)
        padding = torch.arange(tokens.shape[1]) >= lengths[:, None]
        weights = self.score(z).squeeze(-1).masked_fill(padding, -math.inf).softmax(-1)
        return self.last((weights[..., None] * z).sum(1))


@failing("unsafe_op", "bad_batch", net="transformer", visible=False)
def masked_row(random: RandomState, seed: int, fixed: bool) -> Training:
    """One sequence of length 0: a softmax over nothing but padding."""
    at, row = integer(random, 40, 100), integer(random, 0, 31)
    model = Padded()

    def batch(i):
        g = torch.Generator().manual_seed(1_000_003 * seed + i + 1)
        x, lengths = torch.randint(0, 16, (32, 12), generator=g), torch.randint(1, 13, (32,), generator=g)
        in_use = torch.arange(12) < lengths[:, None]
        most = torch.stack([((x % 4 == c) & in_use).sum(1) for c in range(4)], 1)
        if i == at and not fixed:
            lengths[row] = 0
        return x, lengths, most.argmax(1)

    def loss(model, batch):
        x, lengths, y = batch
        return nn.functional.cross_entropy(model(x, lengths), y)

    kept = batch(-1)
    return Training(
        model=model,
        optimizer=Adam(model.parameters(), lr=1e-2),
        loss=loss,
        batch=batch,
        steps=200,
        score=lambda: float(loss(model, kept)),
        target=0.9,
        at=at,
        where="loss",
    )
