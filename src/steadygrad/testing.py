"""Faults on purpose: put a NaN, an Inf or a huge value into a chosen tensor at a chosen step.

For testing how a training, a guard or a monitor takes it. Our own tests use it.

Example:
    >>> import torch
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> norms = []
    >>> with inject(model, Fault("grad", step=2, value=float("inf"))):
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(8, 4)).square().mean().backward()
    ...         norms.append(bool(model.weight.grad.isfinite().all()))
    >>> norms
    [True, True, False, True]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.forecasting.module import forecast

Site = Literal["input", "activation", "loss", "grad", "param", "buffer", "state"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What to put where, and when.

    Args:
        site: ``input`` of the model, ``activation`` (output of the module ``tensor``), ``loss`` (the root of
            ``backward`` is multiplied by ``value``, its gradient with it), ``grad``, ``param``, ``buffer``,
            or ``state`` of the optimizer.
        step: number of the backward pass, from 0, counted from entering :func:`inject`. With gradient
            accumulation every micro-batch counts.
        value: what is written into one element (``loss``: the factor).
        tensor: name of the parameter, buffer or module as ``named_parameters`` has it; the first one if None.
            For ``state`` of the optimizer ``"<parameter>:<key>"``, e.g. ``"0.weight:exp_avg_sq"``.
        element: flat index of the element that is written.
        times: in how many passes in a row.
    """

    site: Site
    step: int
    value: float = float("nan")
    tensor: str | None = None
    element: int = 0
    times: int = 1

    def due(self, count: int) -> bool:
        return self.step <= count < self.step + self.times


@contextmanager
def inject(model: nn.Module, *faults: Fault, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Carry out ``faults`` on the trainings of ``model`` that run inside the ``with`` block.

    Args:
        model: the trained model; any device and dtype.
        faults: what, where, when.
        optimizer: needed for faults in its ``state``.

    Raises:
        ValueError: an unknown site, a tensor that the model does not have, a negative step; before anything is
            installed.
    """
    installers = [(_INSTALLERS[f.site], f, _target(model, f, optimizer)) for f in map(_checked, faults)]
    counter = _Counter()
    with ExitStack() as stack:
        stack.enter_context(_counting(counter))
        for install, fault, target in installers:
            stack.callback(install(model, fault, target, counter))
        yield


class _Counter:
    """Backward passes begun so far; who wants to act just before one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.on_roots: list[Callable[[Sequence[Tensor]], Sequence[Tensor]]] = []


@contextmanager
def _counting(counter: _Counter) -> Iterator[None]:
    original = torch.autograd.backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        roots = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        for change in counter.on_roots:
            roots = tuple(change(roots))
        try:
            original(roots, *args, **kwargs)
        finally:
            counter.count += 1

    torch.autograd.backward = backward  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.autograd.backward = original  # type: ignore[assignment]


def _checked(fault: Fault) -> Fault:
    if fault.site not in _INSTALLERS:
        raise ValueError(f"site must be one of {', '.join(_INSTALLERS)}; got {fault.site!r}")
    if fault.step < 0 or fault.times < 1:
        raise ValueError(
            f"step must be 0 or more and times 1 or more; got step={fault.step}, times={fault.times}"
        )
    return fault


def _target(model: nn.Module, fault: Fault, optimizer: Optimizer | None) -> Any:
    """The thing that the fault names, looked up before anything is installed."""
    if fault.site in ("input", "loss"):
        return model
    if fault.site == "activation":
        names = {n: m for n, m in model.named_modules() if n}
        return _pick(names, fault.tensor, "module")
    if fault.site == "buffer":
        return _pick(dict(model.named_buffers()), fault.tensor, "buffer")
    name, _, key = (fault.tensor or "").partition(":")
    param = _pick(dict(model.named_parameters()), name or None, "parameter")
    if fault.site != "state":
        return param
    if optimizer is None or not key:
        raise ValueError(
            'a fault in the optimizer\'s state needs optimizer=... and tensor="<parameter>:<key>"'
        )
    return optimizer, param, key


def _pick(named: dict[str, Any], name: str | None, what: str) -> Any:
    if not named:
        raise ValueError(f"the model has no {what}")
    if name is None:
        return next(iter(named.values()))
    if name not in named:
        raise ValueError(f"the model has no {what} {name!r}; it has {', '.join(list(named)[:5])}")
    return named[name]


@torch.no_grad()
def _write(tensor: Tensor, fault: Fault) -> None:
    tensor.view(-1)[fault.element % tensor.numel()] = fault.value


def _poisoned(tensor: Tensor, fault: Fault) -> Tensor:
    """A copy with the value in it, still connected to the graph."""
    mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[fault.element % tensor.numel()] = True
    return tensor.masked_fill(mask.view(tensor.shape), fault.value)


def _in_input(model: nn.Module, fault: Fault, target: Any, counter: _Counter) -> Callable[[], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not fault.due(counter.count):
            return None
        return tuple(
            _poisoned(a, fault) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        )

    return target.register_forward_pre_hook(hook).remove


def _in_activation(model: nn.Module, fault: Fault, target: Any, counter: _Counter) -> Callable[[], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return _poisoned(output, fault) if fault.due(counter.count) and isinstance(output, Tensor) else None

    return target.register_forward_hook(hook).remove


def _in_loss(model: nn.Module, fault: Fault, target: Any, counter: _Counter) -> Callable[[], None]:
    def change(roots: Sequence[Tensor]) -> Sequence[Tensor]:
        return [root * fault.value for root in roots] if fault.due(counter.count) else roots

    counter.on_roots.append(change)
    return lambda: counter.on_roots.remove(change)


def _in_grad(model: nn.Module, fault: Fault, target: Any, counter: _Counter) -> Callable[[], None]:
    def hook(param: Tensor) -> None:
        if fault.due(counter.count) and param.grad is not None:
            _write(param.grad, fault)

    return target.register_post_accumulate_grad_hook(hook).remove


def _in_tensor(model: nn.Module, fault: Fault, target: Any, counter: _Counter) -> Callable[[], None]:
    """Parameters, buffers and optimizer state are written just before the forward of the chosen pass, once."""
    done: set[int] = set()

    def hook(module: nn.Module, args: Any) -> None:
        if not fault.due(counter.count) or counter.count in done:
            return
        done.add(counter.count)
        if isinstance(target, Tensor):
            _write(target, fault)
        else:
            optimizer, param, key = target
            _write(optimizer.state[param][key], fault)

    return model.register_forward_pre_hook(hook).remove


_INSTALLERS: dict[str, Callable[[nn.Module, Fault, Any, _Counter], Callable[[], None]]] = {
    "input": _in_input,
    "activation": _in_activation,
    "loss": _in_loss,
    "grad": _in_grad,
    "param": _in_tensor,
    "buffer": _in_tensor,
    "state": _in_tensor,
}


def assert_steady(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    steps: int = 10,
) -> None:
    """Fail a unit test if a training will fail, as :func:`steadygrad.forecast` sees it. Arguments are the same.

    Raises:
        AssertionError: the forecast, with causes and advice.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> assert_steady(model, nn.CrossEntropyLoss(), (torch.randn(32, 8), torch.randint(0, 3, (32,))), optimizer)
    """
    found = forecast(model, loss_fn, batch, optimizer, steps=steps)
    if found.will_fail:
        advice = "".join(f"\n  {c.cause}: {c.advice}" for c in found.causes[:2])
        raise AssertionError(f"{found}{advice}")
