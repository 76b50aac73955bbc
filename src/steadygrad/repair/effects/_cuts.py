"""Where the user's own code leaves the graph of autograd: by ``detach``, by ``.data``, by ``no_grad``."""

from __future__ import annotations

import inspect
import os
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from steadygrad.locating.frames import Site, frames, owner

OPS = ("detach", "data", "no_grad")
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_GRAD_MODE = os.path.join(_TORCH, "autograd", "grad_mode.py")
_DECORATORS = os.path.join(_TORCH, "utils", "_contextlib.py")
_DATA: Any = Tensor.data


def op_of(name: str, func: Any) -> str:
    """Which kind of cut a call that has come to a mode can be; "" for any other call."""
    if name in ("detach", "detach_"):
        return "detach"
    if name == "__get__" and getattr(func, "__self__", None) is _DATA:
        return "data"
    return "no_grad" if func is torch._C._set_grad_enabled else ""


def cut_of(name: str, func: Any, args: tuple[Any, ...]) -> str:
    """The kind of cut that a call makes; "" where nothing is cut: gradients are off, or none is asked for.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> [cut_of("detach", Tensor.detach, (t,)) for t in (x, torch.ones(1))]
        ['detach', '']
    """
    op = op_of(name, func)
    if not op or not args or not torch.is_grad_enabled():
        return ""
    cuts = args[0] is False if op == "no_grad" else args[0].requires_grad
    return op if cuts else ""


def place_of_cut(func: Any) -> Site | None:
    """The user's line that makes the cut at hand itself; None if torch, a library or steadygrad makes it.

    For a decorated function it is the line of its first decorator. Gradients that the end of a block switches off
    again are no cut.

    Args:
        func: the call that has come to the mode.
    """
    frame, decorated = _asking(func), None
    while frame is not None:
        path = frame.f_code.co_filename
        if path == _DECORATORS:
            decorated = frame.f_locals.get("func")
        elif path != _GRAD_MODE:
            break
        elif frame.f_code.co_name == "__exit__":
            return None
        frame = frame.f_back
    if frame is None:
        return None
    code = frame.f_code if decorated is None else getattr(inspect.unwrap(decorated), "__code__", None)
    if code is None or owner(code.co_filename) != "user":
        return None
    return Site(code.co_filename, frame.f_lineno if decorated is None else code.co_firstlineno)


def _asking(func: Any) -> FrameType | None:
    """The frame that has made a call: behind all modes, ours and others, that have handed it on to us."""
    asking: FrameType | None = None
    for frame in frames():
        if frame.f_code.co_name == "__torch_function__":
            if frame.f_locals.get("func") == func:
                asking = frame.f_back
        elif owner(frame.f_code.co_filename) == "user":
            break
    return asking
