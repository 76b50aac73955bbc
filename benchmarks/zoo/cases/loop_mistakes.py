"""Mistakes in the loop: nets, data, rates and losses are fine."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import StepLR

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    MLP,
    TransformerLM,
    cross_entropy,
    digits,
    eval_loss,
    integer,
    log_uniform,
    regression,
    squared_error,
    tokens,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training


def classify(model, optimizer, seed, steps, target=0.8, data=None, loss=cross_entropy, **more) -> Training:
    """Digits, scored by their test loss: 2.3 for a guess."""
    data = data or digits()
    return Training(
        model=model,
        optimizer=optimizer,
        loss=loss,
        batch=data.batches(seed),
        steps=steps,
        score=eval_loss(model, cross_entropy, data),
        target=target,
        **more,
    )


@failing("loop_mistake", net="mlp")
def zero_grad_missing(random: RandomState, seed: int, fixed: bool) -> Training:
    """Every gradient is the sum of all before it."""
    rate = uniform(random, 0.05, 0.15)
    model = MLP(64, 64, integer(random, 2, 4), 10)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            loss = t.loss(t.model, t.batch(i))
            loss.backward()
            t.optimizer.step()
            yield float(loss.detach())

    optimizer = SGD(model.parameters(), lr=rate)
    return classify(model, optimizer, seed, 250, loop=None if fixed else loop, facts={"lr": rate})


@failing("loop_mistake", net="transformer", blind=True)
def zero_grad_before_step(random: RandomState, seed: int, fixed: bool) -> Training:
    """The gradients are cleared between backward and step: nothing is ever learned."""
    rate = log_uniform(random, 1e-3, 4e-3)
    model = TransformerLM(depth=2)
    data = tokens(seed)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            loss = t.loss(t.model, t.batch(i))
            loss.backward()
            t.optimizer.zero_grad()
            t.optimizer.step()
            yield float(loss.detach())

    return Training(
        model=model,
        optimizer=AdamW(model.parameters(), lr=rate),
        loss=cross_entropy,
        batch=data.batches(seed, 32),
        steps=120,
        score=eval_loss(model, cross_entropy, data),
        target=1.6,
        loop=None if fixed else loop,
        facts={"lr": rate},
    )


def accumulating(parts: int, running: bool, divided: bool):
    """A loop that steps after every ``parts`` batches; ``running``: backward on the sum so far, each time."""

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            t.optimizer.zero_grad()
            total: Tensor | float = 0.0
            for k in range(parts):
                loss = t.loss(t.model, t.batch(parts * i + k))
                if divided:
                    loss = loss / parts
                total = total + loss
                if running:
                    total.backward(retain_graph=True)
                else:
                    loss.backward()
            t.optimizer.step()
            yield float(total.detach())

    return loop


@failing("loop_mistake", "loss_reduction", net="mlp")
def loss_used_again(random: RandomState, seed: int, fixed: bool) -> Training:
    """Backward on a running total, with ``retain_graph``: the first of 16 batches counts 16 times."""
    rate = uniform(random, 0.1, 0.2)
    model = MLP(64, 64, 3, 10)
    loop = accumulating(16, running=not fixed, divided=fixed)
    return classify(
        model, SGD(model.parameters(), lr=rate, momentum=0.9), seed, 60, loop=loop, facts={"lr": rate}
    )


@failing("loss_reduction", "loop_mistake", net="mlp")
def accumulation_undivided(random: RandomState, seed: int, fixed: bool) -> Training:
    """Gradients of 64 batches are added where their mean is meant."""
    rate = uniform(random, 0.1, 0.3)
    model = MLP(20, 64, 2, 1)
    data = regression(seed)
    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate / 4),
        loss=squared_error,
        batch=data.batches(seed, 8),
        steps=60,
        score=unexplained(model, data),
        target=0.5,
        loop=accumulating(64, running=False, divided=fixed),
        facts={"lr": rate / 4},
    )


@failing("loop_mistake", "vanishing", net="mlp")
def eval_mode_left_on(random: RandomState, seed: int, fixed: bool) -> Training:
    """Put into eval mode for a first validation, and never back: the batch norms let everything through as it is."""
    depth, rate = integer(random, 14, 20), uniform(random, 0.03, 0.06)
    model = MLP(64, 48, depth, 10, gain=uniform(random, 0.4, 0.6), norm=nn.BatchNorm1d)

    def loop(t: Training) -> Iterator[float]:
        t.model.eval()
        with torch.no_grad():
            t.loss(t.model, t.batch(0))
        if fixed:
            t.model.train()
        for i in range(t.steps):
            t.optimizer.zero_grad()
            loss = t.loss(t.model, t.batch(i))
            loss.backward()
            t.optimizer.step()
            yield float(loss.detach())

    return classify(
        model, SGD(model.parameters(), lr=rate), seed, 250, 1.4, loop=loop, facts={"depth": depth, "lr": rate}
    )


@failing("loop_mistake", net="mlp")
def optimizer_of_a_copy(random: RandomState, seed: int, fixed: bool) -> Training:
    """The optimizer was made before the model was copied: it steps weights that nobody uses."""
    rate = log_uniform(random, 5e-4, 3e-3)
    model = MLP(64, 64, integer(random, 2, 4), 10)
    stepped = model if fixed else copy.deepcopy(model)
    return classify(model, Adam(stepped.parameters(), lr=rate), seed, 200, facts={"lr": rate})


@failing("lr_too_small", "loop_mistake", net="mlp")
def scheduler_every_batch(random: RandomState, seed: int, fixed: bool) -> Training:
    """A schedule in epochs, stepped once per batch: the rate is gone before the first epoch is over."""
    epoch, rate = integer(random, 60, 90), uniform(random, 0.01, 0.03)
    model = MLP(64, 64, 3, 10)
    optimizer = SGD(model.parameters(), lr=rate)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.3)

    def loop(t: Training) -> Iterator[float]:
        for i in range(t.steps):
            t.optimizer.zero_grad()
            loss = t.loss(t.model, t.batch(i))
            loss.backward()
            t.optimizer.step()
            if not fixed or i % epoch == epoch - 1:
                t.scheduler.step()
            yield float(loss.detach())

    return classify(
        model,
        optimizer,
        seed,
        4 * epoch,
        1.2,
        scheduler=scheduler,
        loop=loop,
        facts={"epoch": epoch, "lr": rate},
    )
