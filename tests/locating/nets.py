"""Small healthy trainings of many shapes. Each function runs a few steps and returns everything that may differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 3


def _end(model: nn.Module, losses: list[Tensor]) -> list[Tensor]:
    state = [v for v in model.state_dict().values() if isinstance(v, Tensor)]
    return [*losses, *(v.detach().clone() for v in state), torch.get_rng_state()]


def _loop(
    model: nn.Module, loss_fn: Callable[[nn.Module], Tensor], optimizer: torch.optim.Optimizer
) -> list[Tensor]:
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_fn(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return _end(model, losses)


def mlp_dropout() -> list[Tensor]:
    model = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(0.3), nn.LayerNorm(16), nn.Linear(16, 3))
    y = torch.arange(8) % 3
    return _loop(
        model, lambda m: F.cross_entropy(m(torch.randn(8, 5)), y), torch.optim.AdamW(model.parameters(), 1e-2)
    )


def cnn_batch_norm() -> list[Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, foreach=True)
    return _loop(model, lambda m: m(torch.randn(4, 2, 8, 8)).square().mean(), optimizer)


def transformer() -> list[Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    return _loop(
        model,
        lambda m: m(torch.randn(3, 5, 8), mask=causal, is_causal=True).square().mean(),
        torch.optim.RMSprop(model.parameters(), 1e-3),
    )


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


def lstm() -> list[Tensor]:
    model = _Recurrent()
    return _loop(
        model, lambda m: m(torch.randn(4, 7, 3)).mean(), torch.optim.Adam(model.parameters(), fused=True)
    )


def autocast() -> list[Tensor]:
    model = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 1))

    def loss(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = m(torch.randn(8, 5))
        return out.float().square().mean()

    return _loop(model, loss, torch.optim.NAdam(model.parameters()))


def lbfgs() -> list[Tensor]:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(STEPS):
        losses.append(torch.as_tensor(optimizer.step(closure)).detach())
    return _end(model, losses)


def gan_with_penalty() -> list[Tensor]:
    g, d = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    og, od = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())
    losses = []
    for _ in range(STEPS):
        real, fake = torch.randn(4, 3), g(torch.randn(4, 2))
        mixed = (0.5 * real + 0.5 * fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(d(mixed).sum(), mixed, create_graph=True)
        loss_d = d(fake.detach()).mean() - d(real).mean() + (slope.norm(dim=1) - 1).square().mean()
        od.zero_grad()
        loss_d.backward()
        od.step()
        loss_g = -d(g(torch.randn(4, 2))).mean()
        og.zero_grad()
        loss_g.backward()
        og.step()
        losses += [loss_d.detach(), loss_g.detach()]
    return _end(nn.ModuleList([g, d]), losses)


def checkpointed() -> list[Tensor]:
    from torch.utils.checkpoint import checkpoint

    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    return _loop(
        model,
        lambda m: checkpoint(m, torch.randn(6, 5), use_reentrant=False).square().mean(),
        torch.optim.SGD(model.parameters(), 0.1),
    )


def scaler_in_half() -> list[Tensor]:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(torch.randn(8, 4)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    return _end(model, losses)


TRAININGS = [
    mlp_dropout,
    cnn_batch_norm,
    transformer,
    lstm,
    autocast,
    lbfgs,
    gan_with_penalty,
    checkpointed,
    scaler_in_half,
]
