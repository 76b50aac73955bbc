"""Faults of data, precision and updates; some are no single line, and brute force says where they come to light."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.planted_cases.training import Training, mlp, mse, planted, regression, sgd

BIG = ("addmm", "mm", "pow", "mul", "square", "sub", "add", "mse_loss", "sum", "mean", "convolution")


class Deep(nn.Module):
    """A chain of layers, one operation per line, so that brute force can follow it."""

    def __init__(self, depth: int, width: int = 16, gain: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4 if i == 0 else width, width) for i in range(depth)])
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = torch.relu(x)
        x = self.head(x)
        return x


def by_lines(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    out = model(x)
    gap = out - y
    square = gap * gap
    loss = square.mean()
    return loss


def sum_by_lines(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    out = model(x)
    gap = out - y
    square = gap * gap
    loss = square.sum()
    return loss


@planted(*BIG, kind="forward|loss|backward", by_oracle=True, b8=True)
def rate_times_100() -> Training:
    model = Deep(4)
    return Training(model, by_lines, regression(40), torch.optim.SGD(model.parameters(), lr=5.0))


@planted(*BIG, kind="forward|loss|backward", by_oracle=True, b8=True)
def init_times_10() -> Training:
    model = Deep(40, gain=40.0)
    return Training(model, by_lines, regression(3), sgd(model, 1e-3))


@planted(*BIG, kind="forward|loss|backward", by_oracle=True, b8=True)
def sum_for_mean() -> Training:
    model = Deep(2)
    return Training(model, sum_by_lines, regression(60, rows=512), sgd(model, 3e-2))


@planted(*BIG, kind="forward|loss|backward", by_oracle=True, b8=True)
def missing_unscale() -> Training:
    """The loss is scaled up for half precision, the gradients are never scaled back."""
    model = Deep(3)
    return Training(
        model,
        by_lines,
        regression(40),
        sgd(model, 1e-2),
        backward=lambda loss: (loss * 2.0**14).backward(),
    )


class Half(nn.Module):
    """Scores of large keys and queries in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 16)
        self.k = nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x) * 100, self.k(x) * 100
        scores = q @ k.T  # PLANTED half_overflow
        return (scores / 400).softmax(-1).mean(1, keepdim=True)


@planted("mm", kind="forward", module="", b8=True)
def half_overflow() -> Training:
    model = Half().half()
    data = [(x.half() * 3, y.half()) for x, y in regression()]
    return Training(model, mse, data, sgd(model, 1e-3))


@planted("_to_copy", "to_copy", "convert_element_type", kind="forward", module="body")
def autocast_overflow() -> Training:
    """A value beyond 65504 is cast to half precision on its way into a layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 8)
            self.head = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.float16):
                x = self.body(x)  # PLANTED autocast_overflow
            return self.head(x.float())

    model = Net()
    data = regression()
    data[1][0][4] *= 1e6
    return Training(model, mse, data, sgd(model))


@planted("addcdiv", kind="optimizer")
def adam_eps_in_half() -> Training:
    """eps 1e-8 is 0 in half precision: a parameter without gradient is divided by 0."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(model(x * 1e-4), y) * 1e-2

    model = mlp().half()
    data = [(x.half(), y.half()) for x, y in regression()]

    class Loop(Training):
        def step(self, batch: Any) -> Tensor:
            self.optimizer.zero_grad()
            made = self.loss_fn(self.model, batch)
            made.backward()
            self.optimizer.step()  # PLANTED adam_eps_in_half
            return made.detach()

    return Loop(model, loss, data, torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True))


class HandAdagrad(torch.optim.Optimizer):
    """An optimizer of the user's own, without an epsilon."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                total = self.state[p].setdefault("total", torch.zeros_like(p))
                total += p.grad * p.grad
                update = p.grad / total.sqrt()  # PLANTED optimizer_by_hand
                p -= group["lr"] * update


@planted("div", kind="optimizer")
def optimizer_by_hand() -> Training:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    nn.init.constant_(model[0].bias, -9.0)  # a dead layer: its gradient is 0
    return Training(model, mse, regression(), HandAdagrad(model.parameters(), 1e-2))


@planted("addmm", kind="data", module="0", sample=11)
def nan_in_one_sample() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        out = model(x)  # PLANTED nan_in_one_sample
        return F.mse_loss(out, y)

    model = mlp()
    data = regression()
    data[2][0][11, 2] = float("nan")
    return Training(model, loss, data, sgd(model))


@planted("mse_loss", "sub", "pow", kind="data", sample=7)
def infinite_target() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(model(x), y)  # PLANTED infinite_target

    model = mlp()
    data = regression()
    data[1][1][7] = float("inf")
    return Training(model, loss, data, sgd(model))
