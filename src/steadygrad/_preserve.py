"""Run a user's model and leave no trace: tensors, attributes, modes and random streams come back bit for bit."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_SEED = (
    0  # dropout and other noise of a measuring run come from this seed, so that measuring is deterministic
)
_DEPTH = 4  # of containers inside module attributes that are kept


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Everything the block does to the model's state and to the random streams is undone at its end, errors included.

    Kept: parameters, buffers and tensor attributes (in place, ``_version`` unchanged), ``requires_grad`` and
    ``grad``, plain attributes of every module and the containers in them, train and eval modes, hooks; the
    streams of torch (CPU and CUDA), ``random`` and numpy. Inside, those streams start from a fixed seed and
    compiled code runs eagerly. Not kept: state outside the model's modules. Costs one copy of the model's
    tensors.
    """
    modules = list(model.modules())
    attributes = [(m, dict(m.__dict__)) for m in modules]
    containers = _containers(modules)
    tensors = _tensors(modules)
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(random_streams())
        if (
            "torch._dynamo" in sys.modules
        ):  # a function mode inside compiled code gives silently wrong numbers
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for module, kept in attributes:
                module.__dict__.clear()
                module.__dict__.update(kept)
            for container, copy in containers:
                _refill(container, copy)
            for tensor, saved in tensors:
                if not torch.equal(
                    tensor, saved
                ):  # also true for every nan, which is then rewritten with itself
                    tensor.data.copy_(saved)
            for parameter, grad, requires_grad in grads:
                parameter.requires_grad_(requires_grad)
                if parameter.grad is not grad:
                    parameter.grad = grad


def split_example(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example_input`` as the arguments of a call, its tensors copied: a mapping is taken as keyword arguments."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_input, dict) or hasattr(example_input, "keys"):
        kwargs = dict(example_input)
    elif isinstance(example_input, (tuple, list)):
        args = tuple(example_input)
    else:
        args = (example_input,)
    return tree_map(_copied, args), tree_map(_copied, kwargs)


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _tensors(modules: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    found: dict[int, Tensor] = {}
    for module in modules:
        groups = (module._parameters, module._buffers, module.__dict__)
        for value in (v for group in groups for v in group.values()):
            if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
                found[id(value)] = value
    return [(t, t.detach().clone()) for t in found.values()]


def _containers(modules: list[nn.Module]) -> list[tuple[Any, Any]]:
    found: dict[int, tuple[Any, Any]] = {}

    def visit(value: Any, depth: int) -> None:
        if not isinstance(value, (list, dict, set, deque)) or id(value) in found or depth > _DEPTH:
            return
        found[id(value)] = (value, value.copy())
        for inner in value.values() if isinstance(value, dict) else value:
            visit(inner, depth + 1)

    for module in modules:
        for value in module.__dict__.values():
            visit(value, 0)
    return list(found.values())


def _refill(container: Any, copy: Any) -> None:
    if isinstance(container, list):
        container[:] = copy
        return
    container.clear()
    container.extend(copy) if isinstance(container, deque) else container.update(copy)


@contextmanager
def random_streams(seed: int = _SEED) -> Iterator[None]:
    """The streams of torch (CPU and CUDA), numpy and Python from this seed; afterwards they are as they were."""
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    try:
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would queue a seed for CUDA
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
