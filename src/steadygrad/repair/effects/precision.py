"""``precision``: nothing is computed in half precision."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.amp.autocast_mode import autocast

from steadygrad.repair.effects._modes import RunMode
from steadygrad.repair.effects.effect import Effect, NotApplicable

HALVES: dict[Any, Any] = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    "torch.HalfTensor": "torch.FloatTensor",
    "torch.BFloat16Tensor": "torch.FloatTensor",
}
CASTS = ("half", "bfloat16")


class Precision(Effect):
    """Autocast is off, and what is cast to float16 or bfloat16, or made in it, is float32.

    Args:
        value: ``"float32"``.

    Loss scaling goes on; it does no harm in float32. Weights that are loaded in half precision stay as they are.
    """

    key: ClassVar[str] = "precision"
    eager: ClassVar[bool] = True

    def __init__(self, value: Any) -> None:
        if value != "float32":
            raise NotApplicable(f'precision is "float32" or not there, got {value!r}')
        self._mode = _Float32()
        self._original: Any = None

    def install(self) -> None:
        self._original = original = autocast.__init__

        @functools.wraps(original)
        def disabled(context: Any, *args: Any, **kwargs: Any) -> None:
            original(context, *args, **kwargs)
            context._enabled = False

        autocast.__init__ = disabled  # type: ignore[method-assign,assignment]
        self._mode.enter()

    def remove(self) -> None:
        if self._original is not None:
            autocast.__init__ = self._original  # type: ignore[method-assign]
            self._original = None
        self._mode.leave()


class _Float32(RunMode):
    def call(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in CASTS and isinstance(args[0], Tensor):
            return args[0].float()
        if name == "__get__":
            return func(*args, **kwargs)
        return func(*map(_wide, args), **{key: _wide(value) for key, value in kwargs.items()})


def _wide(value: Any) -> Any:
    return HALVES.get(value, value) if isinstance(value, (torch.dtype, str)) else value
