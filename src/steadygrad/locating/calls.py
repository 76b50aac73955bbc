"""One call of an operation: what went in as it was before, and what came out."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steadygrad.locating.ops import OVERWRITING, plain_name
from steadygrad.locating.values import peak, plain, tensors_in

MAX_KEPT = 1 << 24  # values of a tensor that is changed in place, kept to say what was wrong with them


@dataclass
class Input:
    """A tensor argument."""

    tensor: Tensor
    peak: float  # before the call
    kept: Tensor | None = None  # its values before, if the call changes them

    @property
    def bad(self) -> bool:
        return not math.isfinite(self.peak)

    @property
    def values(self) -> Tensor:
        return self.tensor if self.kept is None else self.kept


@dataclass
class Part:
    """A call, or one of the many that a grouped call makes at once."""

    op: str
    outputs: list[tuple[Tensor, float]]  # with their peaks
    arguments: tuple[Any, ...]  # positional, in their order
    inputs: list[Input] = field(default_factory=list)

    @property
    def bad(self) -> list[Tensor]:
        return [tensor for tensor, top in self.outputs if not math.isfinite(top)]


@functools.lru_cache(maxsize=4096)
def written_arguments(func: Any) -> tuple[tuple[int, str, bool], ...]:
    """Place, name and whether it is an ``out=`` of every argument that an operation changes in place."""
    return tuple(
        (place, argument.name, bool(argument.kwarg_only))
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


class Call:
    """An operation about to be run.

    Args:
        func: as a dispatch mode is given it.
        args, kwargs: its arguments.
    """

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.op = plain_name(func)
        self.raw = func.overloadpacket.__name__
        self.args, self.kwargs = args, kwargs
        self.written: list[Tensor] = []
        self._before: dict[int, Input] = {}
        self._unread: set[int] = set()
        for place, name, is_out in written_arguments(func):
            value = args[place] if place < len(args) else kwargs.get(name)
            for tensor in tensors_in(value):
                self.written.append(tensor)
                if is_out or self.op in OVERWRITING:
                    self._unread.add(id(tensor))
                else:
                    keep = (
                        "_foreach" not in self.raw and "_fused" not in self.raw and tensor.numel() <= MAX_KEPT
                    )
                    kept = plain(tensor).clone() if keep else None
                    self._before[id(tensor)] = Input(tensor, peak(tensor), kept)

    def parts(self, out: Any) -> Iterator[Part]:
        """What the call came to, read after it."""
        outputs = [*self.written, *(t for t in tensors_in(out) if all(t is not w for w in self.written))]
        if "_foreach" in self.raw or "_fused" in self.raw:
            yield from self._grouped(outputs)
        else:
            part = Part(self.op, [(t, peak(t)) for t in outputs], self.args)
            if part.bad:
                part.inputs = [self._input(t) for t in self._read(self.args, self.kwargs)]
            yield part

    def _grouped(self, outputs: list[Tensor]) -> Iterator[Part]:
        length = max((len(a) for a in self.args if isinstance(a, (list, tuple))), default=0)
        for i in range(length):
            arguments = tuple(
                a[i] if isinstance(a, (list, tuple)) and len(a) == length else a for a in self.args
            )
            mine = [t for t in tensors_in(arguments) if any(t is w for w in self.written)]
            if not self.written and i < len(outputs):
                mine = [outputs[i]]
            part = Part(self.op, [(t, peak(t)) for t in mine], arguments)
            if part.bad:
                part.inputs = [self._input(t) for t in self._read(arguments, {})]
            yield part

    def _read(self, args: Any, kwargs: Any) -> Iterator[Tensor]:
        for tensor in tensors_in([args, kwargs]):
            if id(tensor) not in self._unread:
                yield tensor

    def _input(self, tensor: Tensor) -> Input:
        return self._before.get(id(tensor)) or Input(tensor, peak(tensor))
