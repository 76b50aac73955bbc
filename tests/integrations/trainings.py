"""Small trainings of every kind. Each is a function ``(seed, steps, wrap) -> dict of tensors`` that trains with the
global RNG alone and returns everything a run leaves behind. ``wrap(models, optimizers)`` is a context manager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.clip import FoldedClip


def unwatched(models, optimizers):
    return nullcontext()


def leavings(models, optimizers, losses) -> dict[str, object]:
    """Parameters, buffers, optimizer state, losses and RNG: what two equal runs must have in common."""
    out: dict[str, object] = {
        "rng": torch.get_rng_state(),
        "losses": torch.tensor(losses, dtype=torch.float64),
    }
    for i, model in enumerate(models):
        out |= {f"model{i}.{k}": v.clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    for i, optimizer in enumerate(optimizers):
        out[f"optimizer{i}"] = copy.deepcopy(optimizer.state_dict())
    return out


def differences(a: object, b: object, path: str = "") -> list[str]:
    """Paths at which two results of :func:`leavings` are not equal bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = (
            a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25))
        )
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")
        ]
    return [] if a == b or (a != a and b != b) else [path]


def blobs(n: int, classes: int = 4, width: int = 16):
    centers = torch.randn(classes, width) * 2
    y = torch.randint(0, classes, (n,))
    return centers[y] + torch.randn(n, width), y


def _classify(model, optimizer, steps, wrap, x, y, batch=16, loss_fn=F.cross_entropy):
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):
            i = torch.randint(0, len(x), (batch,))
            optimizer.zero_grad()
            loss = loss_fn(model(x[i]), y[i])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return leavings([model], [optimizer], losses)


def mlp_dropout(seed, steps, wrap):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    )
    return _classify(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps, wrap, *blobs(256))


def cnn_batchnorm(seed, steps, wrap):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    x, y = blobs(256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return _classify(model, optimizer, steps, wrap, x.view(-1, 1, 4, 4), y)


class Tagger(nn.Module):
    def __init__(self, depth=2, width=32):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 20)

    def forward(self, x):
        return self.head(self.body(self.embed(x)))


def transformer(seed, steps, wrap):
    torch.manual_seed(seed)
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 50))
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):
            x = torch.randint(0, 20, (8, 12))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).flatten(0, 1), x.roll(1, 1).flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return leavings([model], [optimizer], losses)


class Summer(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def lstm(seed, steps, wrap):
    torch.manual_seed(seed)
    model = Summer()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):
            x = torch.rand(16, 20, 2)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x)[:, 0], x[..., 0].mean(1))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return leavings([model], [optimizer], losses)


def gan(seed, steps, wrap):
    torch.manual_seed(seed)
    g = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    d = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    og, od = (torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (g, d))
    bce, losses = F.binary_cross_entropy_with_logits, []
    with wrap([g, d], [og, od]):
        for _ in range(steps):
            real, fake = torch.randn(32, 2) * 0.5 + 2, g(torch.randn(32, 4))
            od.zero_grad()
            loss_d = bce(d(real), torch.ones(32, 1)) + bce(d(fake.detach()), torch.zeros(32, 1))
            loss_d.backward()
            od.step()
            og.zero_grad()
            loss_g = bce(d(fake), torch.ones(32, 1))
            loss_g.backward()
            og.step()
            losses += [loss_d.item(), loss_g.item()]
    return leavings([g, d], [og, od], losses)


def gradient_penalty(seed, steps, wrap):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = blobs(256)
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):
            i = torch.randint(0, 256, (16,))
            given = x[i].requires_grad_()
            optimizer.zero_grad()
            out = model(given)
            (slope,) = torch.autograd.grad(out.sum(), given, create_graph=True)
            loss = F.mse_loss(out[:, 0], y[i].float()) + (slope.norm(dim=1) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return leavings([model], [optimizer], losses)


def lbfgs(seed, steps, wrap):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    y = (x[:, :1] * x[:, 1:2]).sin()
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=0.5, max_iter=4, history_size=5, line_search_fn="strong_wolfe"
    )
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):

            def closure():
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
    return leavings([model], [optimizer], losses)


def bf16_autocast(seed, steps, wrap):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = blobs(256)
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):
            i = torch.randint(0, 256, (16,))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x[i]), y[i])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return leavings([model], [optimizer], losses)


def _clipped(model, optimizer, bounds, steps, wrap, dtype=torch.float32):
    """Clipped by torch, to one of the bounds after the other; the norms and the last gradients are results too."""
    x, y = blobs(256)
    x, losses = x.to(dtype), []
    with wrap([model], [optimizer]):
        for step in range(steps):
            i = torch.randint(0, 256, (16,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[i]), y[i])
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), bounds[step % len(bounds)])
            optimizer.step()
            losses += [loss.item(), norm.item()]
    return leavings([model], [optimizer], losses) | {
        "grads": {n: p.grad for n, p in model.named_parameters()}
    }


def alternating_clip(seed, steps, wrap):
    """Each second step is clipped, the others are far below the bound."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return _clipped(model, optimizer, (1e-3, 1e3), steps, wrap)


def bf16_gradients(seed, steps, wrap):
    """Weights, gradients and so torch's own norm of them in bfloat16."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return _clipped(model, optimizer, (0.1, 1e3), steps, wrap, torch.bfloat16)


def folded_clip(seed, steps, wrap):
    """The clip rides in a fused step: its factor and flag must not be taken for a GradScaler's."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x, y = blobs(256)
    losses = []
    with wrap([model], [optimizer]):
        clips = [FoldedClip(optimizer, max_norm) for max_norm in (1e-3, 1e3)]
        for step in range(steps):
            i = torch.randint(0, 256, (16,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[i]), y[i])
            loss.backward()
            losses += [loss.item(), clips[step % 2].step().norm.item()]
    return leavings([model], [optimizer], losses)


def accumulation(seed, steps, wrap):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    x, y = blobs(256)
    losses = []
    with wrap([model], [optimizer]):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)
            for _ in range(4):
                i = torch.randint(0, 256, (8,))
                loss = F.cross_entropy(model(x[i]), y[i]) / 4
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return leavings([model], [optimizer], losses)


def compiled(seed, steps, wrap):
    torch.manual_seed(seed)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return _classify(torch.compile(model, backend="aot_eager"), optimizer, steps, wrap, *blobs(256))


NO_HARM: dict[str, Callable] = {
    f.__name__: f
    for f in (
        mlp_dropout,
        cnn_batchnorm,
        transformer,
        lstm,
        gan,
        gradient_penalty,
        lbfgs,
        bf16_autocast,
        alternating_clip,
        bf16_gradients,
        folded_clip,
        accumulation,
        compiled,
    )
}
