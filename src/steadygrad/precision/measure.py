"""``sg.precision.headroom``: the tensors that a training step in low precision would cast, and their exponents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from steadygrad._check import count
from steadygrad._preserve import untouched
from steadygrad.forecasting.module import loss_caller
from steadygrad.precision.histogram import ExponentHistogram, exponent_histogram
from steadygrad.precision.result import MARGIN, Headroom, Kind, TensorHeadroom

Found = dict[tuple[Kind, str], ExponentHistogram]


def headroom(
    model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, *, margin: int = MARGIN
) -> Headroom:
    """Forecast which tensors of a training bf16, fp16, fp8 e4m3 and fp8 e5m2 would lose, and which scale each wants.

    One forward and backward pass as the model is, best in float32. Looked at are the tensors that a low precision
    casts: every weight, what each layer with a weight is given, the gradient that arrives at its output, and the
    gradients of the weights. Of each only the exponents are kept.

    When to use it: before a switch to autocast, to float16 with a GradScaler, or to fp8; and when such a run stalls
    (gradients that flush to 0) or turns inf.

    Values in use: margin 1. fp8: e4m3 for weights and inputs, e5m2 for gradients.

    Cost: one step, and of each tensor one read more and a few temporaries; the counts travel to the host.

    Args:
        model: as it will be trained, in training mode.
        loss_fn: as in `sg.forecast`: ``loss_fn(model, batch)``, or a loss of torch's, called on ``model(x)`` and ``y``.
        batch: one batch as the loop will see it, on the model's device.
        margin: doublings between the largest number and the end of a format that a wanted scale leaves, at least 0.

    Returns:
        A `Headroom`, in the order of execution. Parameters, buffers, gradients and random streams are put back. nan and
        inf are counted and left out of the rest.

    Not seen: products inside a fused kernel (attention scores, the gates of an LSTM), functions that hold their weights
    themselves, and what later batches bring.

    Raises:
        TypeError: an argument is of the wrong kind, or the loss is no scalar tensor with a history.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> found = headroom(model, nn.MSELoss(), (torch.randn(32, 8), torch.full((32, 1), 1e6)))
        >>> found["gradient of 2.bias"].said("fp16"), found["gradient of 2.bias"].said("bf16")
        ('100% over; x 2^-6: fits', 'fits')

    Source: Micikevicius et al. (2018), section 3.2, https://arxiv.org/abs/1710.03740; Micikevicius et al. (2022),
    https://arxiv.org/abs/2209.05433
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    margin = count("margin", margin, least=0)
    found: Found = {}
    everything = nn.ModuleList([m for m in (model, loss_fn) if isinstance(m, nn.Module)])
    with untouched(everything):
        for p in everything.parameters():
            p.grad = None
        with _looked_at(model, found):
            loss = loss_caller(loss_fn)(model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise TypeError("loss_fn must return a scalar tensor that depends on the parameters")
            loss.backward()
        for name, p in model.named_parameters():
            if p.is_floating_point():
                _add(found, "weight", name, p)
            if p.grad is not None and p.is_floating_point():
                _add(found, "weight gradient", f"gradient of {name}", p.grad)
    return Headroom(tuple(TensorHeadroom(name, kind, seen, margin) for (kind, name), seen in found.items()))


def _add(found: Found, kind: Kind, name: str, x: Tensor) -> None:
    found[kind, name] = found.get((kind, name), ExponentHistogram()) + exponent_histogram(x)


@contextmanager
def _looked_at(model: nn.Module, found: Found) -> Iterator[None]:
    """Inputs of the layers that have a matrix of their own, and the gradients at their outputs, of every call."""
    handles = []
    for name, module in model.named_modules():
        if any(p.ndim > 1 for p in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(partial(_look, found, name or "the model")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(found: Found, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    given = next((x for x in args if isinstance(x, Tensor)), None)
    if given is not None and given.is_floating_point():
        _add(found, "input", f"input of {name}", given)
    made = output if isinstance(output, Tensor) else next((x for x in output if isinstance(x, Tensor)), None)
    if made is not None and made.requires_grad and made.is_floating_point():
        made.register_hook(lambda gradient: _add(found, "gradient", f"gradient at {name}", gradient))
