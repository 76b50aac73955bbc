"""A small training whose steps are clipped in one way or another, and a count of what torch runs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from steadygrad.clip import FoldedClip, folded

Make = Callable[..., Optimizer]  # from parameters or groups to an optimizer

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adamw": (AdamW, {"lr": 3e-3}),
    "adamw_amsgrad": (AdamW, {"lr": 3e-3, "amsgrad": True}),
    "adam": (Adam, {"lr": 3e-3}),
    "adam_l2": (Adam, {"lr": 3e-3, "weight_decay": 1e-2}),
    "sgd": (SGD, {"lr": 0.05}),
    "sgd_momentum": (SGD, {"lr": 0.02, "momentum": 0.9}),
    "sgd_nesterov": (SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    "sgd_dampening": (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    "adagrad": (Adagrad, {"lr": 0.02}),
}


def fused(name: str) -> Make:
    kind, settings = OPTIMIZERS[name]
    return lambda params: kind(params, **settings, fused=True)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))


def gradients(model: nn.Module, step: int) -> None:
    """The gradients of a batch that is this step's own; their norm is 0.3 to 3."""
    g = torch.Generator().manual_seed(step)
    x, y = torch.randn(32, 16, generator=g), torch.randint(0, 4, (32,), generator=g)
    model.zero_grad()
    (F.cross_entropy(model(x), y) * (1 + 2 * (step % 3))).backward()


def plainly(optimizer: Optimizer, max_norm: float) -> Callable[[], bool]:
    """torch's own clip and step, skipped if the norm is not finite; tells whether it was clipped."""

    def step() -> bool:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip_grad_norm_(params, max_norm)
        if norm.isfinite():
            optimizer.step()
        return bool(norm > max_norm)

    return step


def folding(optimizer: Optimizer, rule: Any) -> Callable[[], bool]:
    clip = FoldedClip(optimizer, rule)
    return lambda: bool(clip.step().scale < 1)


def trained(
    make: Make, way: Callable[..., Callable[[], bool]], rule: Any, steps: int = 200, bad: tuple[int, ...] = ()
) -> tuple[nn.Module, Optimizer, int]:
    """The model and optimizer after some steps, and how many were clipped. ``bad``: steps with a nan."""
    model = net()
    optimizer = make(model.parameters())
    step, num_clipped = way(optimizer, rule), 0
    for i in range(steps):
        gradients(model, i)
        if i in bad:
            next(model.parameters()).grad.view(-1)[5] = float("nan")
        num_clipped += step()
    return model, optimizer, num_clipped


@torch.no_grad()
def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest relative distance of a parameter tensor."""
    return max(float((p - q).norm() / q.norm()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def bits(optimizer: Optimizer) -> list[Any]:
    """Parameters, gradients and state, as they are bit for bit."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    out: list[Any] = []
    for p in params:
        state = optimizer.state.get(p, {})
        tensors = [p, p.grad, *(v for v in state.values() if isinstance(v, Tensor))]
        out.append([None if t is None else t.detach().numpy().tobytes() for t in tensors])
        out.append(sorted(state))
    return out


def same(a: Optimizer, b: Optimizer) -> bool:
    return bits(a) == bits(b)


@contextlib.contextmanager
def as_on_a_device(monkeypatch: Any) -> Iterator[None]:
    """The way of a GPU, on the CPU: the host reads nothing, the fused step gets factor and flag."""
    with monkeypatch.context() as patch:
        patch.setattr(folded, "NEAR", ())
        yield


class Count(TorchDispatchMode):
    """How often each operator runs, and how many tensors the norms were taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.normed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0].removeprefix("aten::")
        self.calls[name] += 1
        if name == "_foreach_norm":
            self.normed += len(args[0])
        return func(*args, **(kwargs or {}))
