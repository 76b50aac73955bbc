"""Is a state good enough to be saved over the last good one? For state dicts of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from steadygrad._foreach import nonfinite
from steadygrad.guard.tensors import Unkeepable, leaves, plainly

SHOWN = 3  # names in a sentence
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class BadTensor:
    """A tensor that holds what no healthy state holds."""

    name: str
    nans: int
    infinities: int
    size: int  # values in all

    def __str__(self) -> str:
        kinds = [(self.nans, "NaN"), (self.infinities, "infinite")]
        counts = " and ".join(f"{n:,} {kind}" for n, kind in kinds if n)
        return f"{self.name} ({counts} of {self.size:,} values)"


@dataclass(frozen=True, slots=True)
class Health:
    """What :func:`is_healthy` has found; true if nothing is wrong."""

    bad: tuple[BadTensor, ...]  # in the order of the state
    num_tensors: int  # that were looked at
    unread: tuple[
        str, ...
    ] = ()  # names of those without values here (meta, lazy, freed by a sharding library)

    def __bool__(self) -> bool:
        return not self.bad

    def __str__(self) -> str:
        if not self.bad:
            return f"healthy: {self.num_tensors:,} tensors are finite"
        more = len(self.bad) - SHOWN
        shown = ", ".join(map(str, self.bad[:SHOWN])) + (f" and {more} more" if more > 0 else "")
        return f"not healthy: {shown}"


def is_healthy(state: Any, *, ignore: Iterable[str] = ()) -> Health:
    """Whether no tensor of a state is NaN or infinite: to be asked before it is saved over a good one.

    One read of the memory, on the tensors' own device, with one host sync for each device. Integers and booleans are
    always healthy. So is a mask: a tensor of more than one value that holds nothing but zeros and infinities. Of a
    DTensor the part on this rank is looked at, without a collective: agree with the other ranks before one of them
    saves. Plain numbers are not judged (a scheduler's best loss begins at infinity).

    Args:
        state: a state dict of a model or an optimizer; dicts, lists and tuples of them, however nested; a tensor; or
            an object that has ``state_dict()``, like a model.
        ignore: names, or patterns like ``"callbacks.*"``, of what is not to be looked at. A name is the path of keys,
            with dots: ``optimizer.state.0.exp_avg``.

    Returns:
        A :class:`Health`: true if all is well; its text names the first tensors that are not.

    Raises:
        TypeError: ``state`` is none of these.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> bool(is_healthy(model.state_dict()))
        True
        >>> with torch.no_grad():
        ...     _ = model.weight[0, 1].fill_(float("nan"))
        >>> print(is_healthy({"model": model.state_dict(), "step": 3}))
        not healthy: model.weight (1 NaN of 2 values)
    """
    if not isinstance(state, (Mapping, list, tuple, Tensor)) and not callable(
        getattr(state, "state_dict", None)
    ):
        raise TypeError(
            f"is_healthy needs a state dict, a tensor or what has state_dict(), got {type(state).__name__}"
        )
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    names: list[str] = []
    found: list[Tensor] = []
    unread: list[str] = []
    with plainly():
        for name, tensor in _tensors(state, "", 0):
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                continue
            try:
                parts = [part for _, part in leaves(tensor)]
            except Unkeepable:
                unread.append(name)
                continue
            names += [name] * len(parts)
            found += parts
        bad: dict[str, BadTensor] = {}
        for i in nonfinite(found):
            verdict = _bad(names[i], found[i])
            if verdict is not None:
                bad.setdefault(names[i], verdict)
    return Health(tuple(bad.values()), len(set(names)), tuple(unread))


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor below ``value`` with its path."""
    if isinstance(value, Tensor):
        yield name or "tensor", value
        return
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        items = [("", value.state_dict())]
    else:
        return
    for key, item in items:
        yield from _tensors(item, ".".join(str(part) for part in (name, key) if part != ""), depth + 1)


def _bad(name: str, values: Tensor) -> BadTensor | None:
    """What is wrong with a tensor that is not finite; None of a mask."""
    values = values.dequantize() if values.is_quantized else values
    if values.layout is not torch.strided:
        values = values.coalesce().values() if values.layout is torch.sparse_coo else values.values()
    values = torch.view_as_real(values) if values.is_complex() else values
    values = values.float() if values.element_size() == 1 else values  # float8 knows no isnan
    nans, infinities = int(values.isnan().sum()), int(values.isinf().sum())
    if (
        not nans
        and infinities
        and values.numel() > 1
        and int((values == 0).sum()) + infinities == values.numel()
    ):
        return None
    return BadTensor(name, nans, infinities, values.numel())
