"""Function modes that lie around a whole run: entered when torch is there, taken out from wherever they are by then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _len_torch_function_stack,
    _pop_mode,
    _push_mode,
)

from steadygrad.locating.frames import owner

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# Torch's code that only hands a call on: whose call it is, the frame above tells.
_HANDS_ON = tuple(
    _TORCH + part.replace("/", os.sep)
    for part in ("overrides.py", "_tensor.py", "functional.py", "nn/functional.py", "utils/_contextlib.py")
)
_HERE = os.path.dirname(os.path.abspath(__file__))
_OURS = os.path.dirname(os.path.dirname(_HERE)) + os.sep
_MODES = {
    os.path.join(_HERE, name) for name in ("safe.py", "loss_calls.py", "precision.py", "cuts.py", "_modes.py")
}
_ARITHMETIC = tuple(_TORCH + part + os.sep for part in ("optim", "amp", os.path.join("nn", "utils")))


class RunMode(TorchFunctionMode):
    """A mode around a whole run: :meth:`call` has every call of a torch function by its name.

    Left alone are ``vmap`` and its kin, and what is being compiled. A backward pass runs under the mode as well, with
    whatever Python it calls: recomputed checkpoints, custom functions, hooks.
    """

    def call(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "backward" or func is torch.autograd.grad:
            with self._beneath_the_engine():
                return func(*args, **kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        return self.call(name, func, args, kwargs)

    @contextmanager
    def _beneath_the_engine(self) -> Iterator[None]:
        """A mode is off while it handles a call: the engine, which this call will start, runs with it on again."""
        engine = torch.autograd._engine_run_backward

        def run(*args: Any, **kwargs: Any) -> Any:
            if any(mode is self for mode in _get_current_function_mode_stack()):
                return engine(*args, **kwargs)
            with self:
                return engine(*args, **kwargs)

        torch.autograd._engine_run_backward = run
        try:
            yield
        finally:
            torch.autograd._engine_run_backward = engine

    def enter(self) -> None:
        """In force from now on, for this thread, beneath the modes whose blocks the user is in."""
        self.leave()
        above = [_pop_mode() for _ in range(_len_torch_function_stack())]
        _push_mode(self)
        for mode in reversed(above):
            _push_mode(mode)

    def leave(self) -> None:
        """Taken out, also from beneath modes that were entered since. Nothing if it is not in force."""
        above = []
        while _len_torch_function_stack():
            top = _pop_mode()
            if top is self:
                break
            above.append(top)
        for each in reversed(above):
            _push_mode(each)


def foreign() -> bool:
    """Whether the operation at hand is part of an optimizer, of clipping or scaling, or of steadygrad itself."""
    frame = sys._getframe(2)
    while frame is not None and _hands_on(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and _is_foreign(frame.f_code.co_filename)


@lru_cache(maxsize=4096)
def _hands_on(path: str) -> bool:
    return path in _HANDS_ON or path in _MODES


@lru_cache(maxsize=4096)
def _is_foreign(path: str) -> bool:
    return path.startswith(_ARITHMETIC) or (path.startswith(_OURS) and owner(path) == "machinery")
