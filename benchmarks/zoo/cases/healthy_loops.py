"""Healthy: loops that are not the plain one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    MLP,
    Batch,
    Recurrent,
    cancer,
    cross_entropy,
    digits,
    eval_error,
    generator,
    integer,
    log_uniform,
    recent_sum,
    squared_error,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


@healthy(net="mlp")
def loss_scale_search(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """float16 with a GradScaler that starts too high: the first steps overflow, and are skipped by the scaler."""
    data, start = digits(), 2.0 ** integer(random, 22, 30)
    model = MLP(64, 64, 1, 10)

    def loop(t: Training) -> Iterator[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=start)
        for i in range(t.steps):
            t.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = t.loss(t.model, t.batch(i))
            scaler.scale(loss).backward()
            scaler.step(t.optimizer)
            scaler.update()
            yield float(loss.detach())

    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 3e-3)),
        cross_entropy,
        data.batches(seed),
        steps=300,
        score=eval_error(model, data),
        target=0.08,
        loop=loop,
        facts={"scale": start},
    )


@healthy(net="mlp")
def accumulated(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Several backward passes to one step."""
    data, parts = digits(), integer(random, 2, 8)
    model = MLP(64, 64, 2, 10)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            x, y = t.batch(i)
            t.optimizer.zero_grad()
            total = 0.0
            for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = t.loss(t.model, part) / parts
                loss.backward()
                total += float(loss.detach())
            t.optimizer.step()
            yield total

    return Training(
        model,
        torch.optim.SGD(model.parameters(), log_uniform(random, 0.03, 0.1), momentum=0.9),
        cross_entropy,
        data.batches(seed, 16 * parts),
        steps=200,
        score=eval_error(model, data),
        target=0.08,
        loop=loop,
        facts={"parts": parts},
    )


@healthy(net="rnn", blind=True)
def clipped_in_the_loop(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A recurrent net whose script clips at a norm that most gradients pass."""
    limit, lr = log_uniform(random, 0.1, 1.0), log_uniform(random, 0.02, 0.06)
    data = recent_sum(seed, integer(random, 15, 30))
    model = Recurrent(2, 32, 1)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            t.optimizer.zero_grad()
            loss = t.loss(t.model, t.batch(i))
            loss.backward()
            nn.utils.clip_grad_norm_(t.model.parameters(), limit)
            t.optimizer.step()
            yield float(loss.detach())

    return Training(
        model,
        torch.optim.SGD(model.parameters(), lr, momentum=0.9),
        squared_error,
        data.batches(seed, 32),
        steps=400,
        score=unexplained(model, data),
        target=0.4,
        loop=loop,
        facts={"limit": limit, "lr": lr},
    )


@healthy(net="mlp")
def lbfgs_closure(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """LBFGS on all samples at once: one step asks for many losses."""
    data, decay = cancer(), log_uniform(random, 3e-4, 3e-3)
    model = MLP(30, 16, 0, 2, activation=nn.Tanh)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return cross_entropy(model, batch) + decay * penalty

    def step(t: Training, batch: Batch) -> Tensor:
        def closure() -> Tensor:
            t.optimizer.zero_grad()
            value = t.loss(t.model, batch)
            value.backward()
            return value

        return t.optimizer.step(closure)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            yield float(step(t, t.batch(i)).detach())

    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=10, line_search_fn="strong_wolfe")
    everything = (data.train_x, data.train_y)
    return Training(
        model,
        optimizer,
        loss,
        lambda i: everything,
        steps=25,
        score=eval_error(model, data),
        target=0.08,
        loop=loop,
        facts={"decay": decay},
    )


@healthy(net="mlp")
def batches_without_labels(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Few samples have a label. Where a batch has none its loss is NaN, a mean over nothing; its gradient is zero."""
    data, share = digits(), uniform(random, 0.1, 0.2)

    def hide(i: int, x: Tensor, y: Tensor) -> Batch:
        known = torch.rand(y.shape, generator=generator(seed, 10**6 + i)) < share
        return x, torch.where(known, y, torch.full_like(y, -1))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        known = y >= 0
        return F.cross_entropy(model(x)[known], y[known])

    model = MLP(64, 64, 1, 10)
    return Training(
        model,
        torch.optim.SGD(model.parameters(), log_uniform(random, 0.01, 0.03), momentum=0.5),
        loss,
        data.batches(seed, 16, hide),
        steps=800,
        score=eval_error(model, data),
        target=0.15,
        facts={"share": share},
    )
