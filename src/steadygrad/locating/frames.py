"""Whose line it is: the innermost frame of the user's code, live or from a traceback that autograd keeps."""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_EXAMPLES = os.path.join(_OURS, "examples") + os.sep
_STDLIB = tuple({sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib")})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_ENGINE = os.path.join("torch", "autograd", "graph.py")
_OPTIM = os.path.join(_TORCH, "optim") + os.sep
_FUNCTIONAL = os.path.join(_TORCH, "nn", "functional.py")
_LINE = re.compile(r'File "(.+?)", line (\d+)')
MAX_PARENTS = 16  # of a node made by the backward pass of a backward pass ...


class Site(NamedTuple):
    """A line of code. ``path`` is absolute and for us alone: people are shown ``shown()``."""

    path: str
    line: int

    def shown(self) -> str:
        """The file relative to the working directory; its name alone if it lies elsewhere."""
        if not self.path:
            return ""
        relative = os.path.relpath(self.path) if os.path.isabs(self.path) else self.path
        return os.path.basename(self.path) if relative.startswith(os.pardir) else relative


NOWHERE = Site("", 0)


@functools.lru_cache(maxsize=4096)
def owner(path: str) -> str:
    """Whose file it is: "user", "library" (installed, but not torch), "torch", or "machinery" (Python's, ours).

    Example:
        >>> import torch, abc
        >>> owner("/home/me/train.py"), owner(torch.__file__), owner(abc.__file__)
        ('user', 'torch', 'machinery')
    """
    if path.startswith(_OURS) and not path.startswith(_EXAMPLES):
        return "machinery"
    if path.startswith(_TORCH):
        return "torch"
    if any(part in path for part in _INSTALLED):
        return "library"
    if path.startswith(_STDLIB) or path.startswith(("<frozen", "<string>", "<__array_function__")):
        return "machinery"
    return "user"


def innermost(places: Sequence[tuple[str, int]] | Iterator[tuple[str, int]]) -> Site:
    """The user's innermost line of frames given from the innermost outwards; a library's where there is none."""
    fallback = NOWHERE
    for path, line in places:
        whose = owner(path)
        if whose == "user":
            return Site(path, line)
        if whose == "library" and not fallback.path:
            fallback = Site(path, line)
    return fallback


def frames() -> Iterator[FrameType]:
    """The live frames, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def current_site() -> Site:
    """The user's line that is being run."""
    return innermost((frame.f_code.co_filename, frame.f_lineno) for frame in frames())


def site_inside_backward() -> Site:
    """The user's line that the backward pass itself runs: a custom function, a hook, a recomputed part.

    NOWHERE if autograd has come to this operation without a line of the user's.
    """

    def since_engine() -> Iterator[tuple[str, int]]:
        for frame in frames():
            if frame.f_code.co_name == "_engine_run_backward" and frame.f_code.co_filename.endswith(_ENGINE):
                return
            yield frame.f_code.co_filename, frame.f_lineno

    site = innermost(since_engine())
    return site if site.path and owner(site.path) == "user" else NOWHERE


def forward_node(node: Any) -> Any:
    """The node of the forward pass behind a node that a backward pass has made; the node itself otherwise.

    Known only under anomaly mode, which links the two.
    """
    for _ in range(MAX_PARENTS):
        parent = node.metadata.get("parent_")
        if parent is None or isinstance(parent, BackwardCFunction):  # what that runs has lines of its own
            break
        node = parent
    return node


def site_of_node(node: Any) -> Site:
    """The user's line that made an autograd node under anomaly mode; NOWHERE if it was made without."""
    stack = forward_node(node).metadata.get("traceback_") or ()
    places = [(m[1], int(m[2])) for entry in reversed(stack) if (m := _LINE.search(entry))]
    return innermost(places)


def in_optimizer() -> bool:
    """Whether a step of an optimizer is being run, torch's or the user's own."""
    for frame in frames():
        if frame.f_code.co_filename.startswith(_OPTIM):
            return True
        if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), torch.optim.Optimizer):
            return True
    return False


def autograd_starts() -> bool:
    """Whether autograd is making the gradient of a root, a 1, just before a backward pass."""
    return any(frame.f_code.co_name == "_make_grads" for frame, _ in zip(frames(), range(12), strict=False))


def in_loss_function() -> bool:
    """Whether a loss of ``torch.nn.functional`` is being computed."""
    return any(
        frame.f_code.co_filename == _FUNCTIONAL
        and (
            "loss" in frame.f_code.co_name
            or "entropy" in frame.f_code.co_name
            or frame.f_code.co_name == "kl_div"
        )
        for frame in frames()
    )
