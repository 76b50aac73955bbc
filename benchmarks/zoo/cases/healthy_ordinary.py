"""Healthy: what most scripts look like, feed-forward."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.zoo.family import healthy
from benchmarks.zoo.parts import (
    CNN,
    MLP,
    Appended,
    cancer,
    cross_entropy,
    digits,
    eval_error,
    integer,
    log_uniform,
    regression,
    squared_error,
    unexplained,
    uniform,
)
from benchmarks.zoo.training import Training, plain_loop


@healthy(net="mlp")
def mlp_sgd(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A ReLU net under SGD with momentum and weight decay."""
    data, lr = digits(), log_uniform(random, 0.02, 0.08)
    model = MLP(64, integer(random, 48, 128), integer(random, 1, 3), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed),
        steps=300,
        score=eval_error(model, data),
        target=0.08,
        facts={"lr": lr},
    )


@healthy(net="mlp", blind=True)
def deep_orthogonal_tanh(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Twenty and more tanh layers, kept open by an orthogonal start."""
    data, depth = digits(), integer(random, 18, 30)
    lr = log_uniform(random, 0.005, 0.02)
    model = MLP(64, 48, depth, 10, activation=nn.Tanh, orthogonal=True, gain=1.05)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed),
        steps=300,
        score=eval_error(model, data),
        target=0.12,
        facts={"lr": lr, "depth": depth},
    )


@healthy(net="mlp")
def residual_layer_norm(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A residual net with LayerNorm under Adam, for a regression."""
    data, lr = regression(seed), log_uniform(random, 1e-3, 4e-3)
    depth = integer(random, 6, 12)
    model = MLP(20, 48, depth, 1, norm=nn.LayerNorm, residual=True, gain=0.5)
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        squared_error,
        data.batches(seed),
        steps=300,
        score=unexplained(model, data),
        target=0.3,
        facts={"lr": lr, "depth": depth},
    )


@healthy(net="cnn")
def cnn_batch_norm(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    data, lr = digits(), log_uniform(random, 0.02, 0.1)
    model = CNN(integer(random, 8, 16), integer(random, 2, 4), norm=True, residual=random.rand() < 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed),
        steps=200,
        score=eval_error(model, data),
        target=0.08,
        facts={"lr": lr},
    )


@healthy(net="mlp")
def adamw_cosine(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The learning rate ends at zero, so the last steps change nothing."""
    data, lr, steps = cancer(), log_uniform(random, 1e-3, 5e-3), 300
    model = MLP(30, integer(random, 32, 96), 2, 2, activation=nn.GELU)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    return Training(
        model,
        optimizer,
        cross_entropy,
        data.batches(seed, 32),
        steps=steps,
        score=eval_error(model, data),
        target=0.08,
        scheduler=CosineAnnealingLR(optimizer, steps),
        facts={"lr": lr},
    )


@healthy(net="cnn", blind=True)
def rmsprop_cnn(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """RMSprop: its first steps are ten times as long as the later ones, as its average starts at zero."""
    data, lr = digits(), log_uniform(random, 3e-4, 1e-3)
    model = CNN(integer(random, 8, 16), 2)
    return Training(
        model,
        torch.optim.RMSprop(model.parameters(), lr),
        cross_entropy,
        data.batches(seed),
        steps=250,
        score=eval_error(model, data),
        target=0.1,
        facts={"lr": lr},
    )


@healthy(net="mlp")
def half_dropout(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """Dropout 0.5 twice: the training loss stays high and noisy, the evaluation is good."""
    data, lr, width = digits(), log_uniform(random, 1e-3, 3e-3), integer(random, 96, 160)
    model = nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, 10),
    )
    return Training(
        model,
        torch.optim.Adam(model.parameters(), lr),
        cross_entropy,
        data.batches(seed, 32),
        steps=300,
        score=eval_error(model, data),
        target=0.1,
        facts={"lr": lr},
    )


@healthy(net="mlp")
def label_smoothing(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """The loss cannot come below a floor of 0.5 to 1.1."""
    data, smoothing = digits(), uniform(random, 0.1, 0.25)
    model = MLP(64, 96, 2, 10)

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)

    return Training(
        model,
        torch.optim.Adam(model.parameters(), log_uniform(random, 1e-3, 3e-3)),
        loss,
        data.batches(seed),
        steps=300,
        score=eval_error(model, data),
        target=0.08,
        facts={"smoothing": smoothing},
    )


@healthy(net="mlp", blind=True)
def frozen_backbone(random: np.random.RandomState, seed: int, fixed: bool) -> Training:
    """A head on a body that was trained before, on half of the classes, and has no gradients any more."""
    data = digits()
    body = MLP(64, 96, 2, 64)
    few = data.train_y < 5
    x, y = data.train_x[few], data.train_y[few]
    earlier = Appended(body, nn.Linear(64, 5))
    first = Training(
        earlier,
        torch.optim.Adam(earlier.parameters(), 2e-3),
        cross_entropy,
        lambda i: (x[i * 32 % 600 :][:32], y[i * 32 % 600 :][:32]),
        steps=60,
        score=lambda: 0.0,
        target=0.0,
    )
    for _ in plain_loop(first):
        pass
    body.requires_grad_(False)
    model = Appended(body, nn.Linear(64, 10))
    lr = log_uniform(random, 3e-3, 2e-2)
    return Training(
        model,
        torch.optim.Adam(model.after.parameters(), lr),
        cross_entropy,
        data.batches(seed),
        steps=300,
        score=eval_error(model, data),
        target=0.15,
        facts={"lr": lr},
    )
