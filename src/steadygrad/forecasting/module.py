"""``sg.forecast``: a model, a loss and a batch, before training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from steadygrad._check import count
from steadygrad._preserve import untouched
from steadygrad.forecasting.result import Forecast
from steadygrad.forecasting.watch import FirstSteps
from steadygrad.records import NAN

STEPS = 10


def forecast(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    steps: int = STEPS,
) -> Forecast:
    """Say what will become of a training, from one batch, before it begins.

    Takes a few real steps on the batch and puts everything back: parameters, buffers, gradients, the optimizer's state,
    the random streams. From the first step's graph come the gains of each layer, the growth through recurrences,
    attention logits, the scale of inputs and targets, dead units, the head-room of half precision, what the loss should
    have begun at; from Hessian-vector products the sharpness, which is held against the learning rate.

    Args:
        model: as it will be trained, in training mode.
        loss_fn: ``loss_fn(model, batch)`` gives the loss, a scalar; or ``loss_fn(model(x), y)`` for a batch ``(x, y)``
            where it is an ``nn.Module`` or takes no model (see below).
        batch: one batch as the loop will see it, on the model's device.
        optimizer: as it will be used, torch's or any other. None: only the first step is looked at, and nothing is said
            about the learning rate.
        steps: steps to take, at least 1. One sees the net as it is; ten see what the learning rate does.

    A ``loss_fn`` of torch's own (``nn.CrossEntropyLoss()``, ``F.mse_loss``) is called as ``loss_fn(model(x), y)``; any
    other callable as ``loss_fn(model, batch)``.

    Returns:
        A :class:`steadygrad.Forecast`. A non-finite loss is a finding, not an error.

    Raises:
        TypeError: an argument is of the wrong kind, or the loss is no scalar tensor with a history.
        ValueError: ``steps`` below 1, the optimizer trains nothing that the loss uses, or it is watched by ``sg.watch``
            just now.

    What ``loss_fn`` keeps outside of the model, the optimizer and its own modules is not put back.

    Cost: ``steps`` steps, and about ten backward passes for the curvature.

    Example:
        >>> import torch, steadygrad as sg
        >>> layers = [torch.nn.Linear(32, 32) for _ in range(20)]
        >>> for layer in layers:
        ...     _ = torch.nn.init.normal_(layer.weight, std=1.0)  # should be sqrt(2 / 32)
        >>> model = torch.nn.Sequential(*[m for layer in layers for m in (layer, torch.nn.ReLU())])
        >>> batch = torch.randn(64, 32), torch.randint(0, 32, (64,))
        >>> found = sg.forecast(model, torch.nn.CrossEntropyLoss(), batch)
        >>> found.will_fail, found.causes[0].cause
        (True, 'init_gain_large')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    count("steps", steps)
    everything = nn.ModuleList([m for m in (model, loss_fn) if isinstance(m, nn.Module)])
    with untouched(everything), _restored(optimizer, everything):
        for p in everything.parameters():
            p.grad = None  # else a gradient that the user holds is added to
        if optimizer is not None:
            return _take_steps(model, loss_caller(loss_fn), batch, optimizer, steps)
        still = torch.optim.SGD(everything.parameters(), lr=0.0)
        found = _take_steps(model, loss_caller(loss_fn), batch, still, 1)
        return replace(found, lr=NAN, lr_limit=NAN)


def _take_steps(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    optimizer: Optimizer,
    steps: int,
) -> Forecast:
    results: list[Forecast] = []
    errors: list[Exception] = []
    params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]

    def gradients() -> list[Tensor]:
        grads = torch.autograd.grad(loss_of(model, batch), params, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]

    watcher = FirstSteps(steps, results.append, models=[model], gradients=gradients, failed=errors.append)
    watcher.joinpoints.install(all_optimizers=False)

    def closure() -> float:
        optimizer.zero_grad()
        # Fused attention has no second derivative; the plain one has, and the curvature is measured in the first step.
        with sdpa_kernel(SDPBackend.MATH) if watcher.steps == 0 else nullcontext():
            loss = loss_of(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"loss_fn must return a scalar tensor, got {_described(loss)}")
        if not loss.requires_grad:
            raise TypeError("the loss has no history: it depends on no parameter that requires a gradient")
        loss.backward()
        if all(p.grad is None for p in params):
            raise ValueError("the optimizer trains nothing that the loss uses: give it model.parameters()")
        return float(loss.detach())

    needs_closure = _needs_closure(optimizer)
    with watcher.joinpoints.alone(optimizer):
        try:
            watcher.joinpoints.attach(optimizer)
            while not results and not errors:
                if needs_closure:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
        finally:
            watcher.joinpoints.remove()
            watcher.locator.close()
            watcher.probe.close()
    if errors:
        raise errors[0]
    return results[0]


def loss_caller(loss_fn: Callable[..., Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """Losses of torch's own are called on output and target."""
    module = getattr(loss_fn, "__module__", "") or ""
    if not isinstance(loss_fn, nn.Module) and not module.startswith("torch."):
        return loss_fn

    def on_output(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(
                f"{getattr(loss_fn, '__name__', type(loss_fn).__name__)} needs a batch (input, target), got "
                f"{_described(batch)}; or give loss_fn as a function of the model and the batch"
            )
        return loss_fn(model(batch[0]), batch[1])

    return on_output


def _needs_closure(optimizer: Optimizer) -> bool:
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@contextmanager
def _restored(optimizer: Optimizer | None, model: nn.Module) -> Iterator[None]:
    """Puts an optimizer back, in place, with what it trains besides the model."""
    if optimizer is None:
        yield
        return
    containers, tensors = _inside(optimizer, {id(p) for p in model.parameters()})
    attributes = {k: v for k, v in vars(optimizer).items() if k != "step"}  # the join points' own
    grads = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
    for p, _ in grads:
        p.grad = None
    try:
        yield
    finally:
        for name in vars(optimizer).keys() - attributes.keys() - {"step"}:
            delattr(optimizer, name)
        vars(optimizer).update(attributes)
        for container, kept in containers:
            if isinstance(container, list):
                container[:] = kept
            else:
                container.clear()
                container.update(kept)
        for tensor, kept in tensors:
            if not torch.equal(tensor, kept):
                tensor.data.copy_(kept)
        for p, grad in grads:
            if p.grad is not grad:
                p.grad = grad


def _inside(
    optimizer: Optimizer, kept_elsewhere: set[int]
) -> tuple[list[tuple[Any, Any]], list[tuple[Tensor, Tensor]]]:
    """The containers and tensors that an optimizer holds, each with a copy."""
    containers: dict[int, tuple[Any, Any]] = {}
    tensors: dict[int, tuple[Tensor, Tensor]] = {}
    waiting: list[Any] = [vars(optimizer)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and id(value) not in kept_elsewhere | tensors.keys():
                tensors[id(value)] = (value, value.detach().clone())
        elif isinstance(value, (dict, list, tuple)) and id(value) not in containers:
            inner = value.values() if isinstance(value, dict) else value
            waiting += inner
            if not isinstance(value, tuple) and value is not vars(optimizer):
                containers[id(value)] = (value, value.copy())
    return list(containers.values()), list(tensors.values())
