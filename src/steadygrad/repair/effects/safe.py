"""``safe_ops``: operations that fail at the ends of their domain have finite values and gradients there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from steadygrad.locating.frames import current_site
from steadygrad.repair.effects import safe_forms, safe_reductions
from steadygrad.repair.effects._modes import RunMode, foreign
from steadygrad.repair.effects._origins import Links, Origins
from steadygrad.repair.effects.effect import Effect, NotApplicable
from steadygrad.repair.effects.safe_forms import Call, Form

FORMS: Mapping[str, Form] = safe_forms.FORMS | safe_reductions.FORMS
LOGS = ("log", "log_")
LINKS = ("logsigmoid", "log_softmax")
MIXED = ("div", "divide", "true_divide", "__truediv__", "__rdiv__", "__rtruediv__", "reciprocal", "xlogy")


def safely(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``call(*args, **kwargs)`` by the safe form of the operation of this name, where it is needed.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> y = safely("sqrt", torch.sqrt, (x,), {})
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([0.0, 2.0], [0.0, 0.25])
    """
    base = name if name.startswith("__") else name.removesuffix("_")
    form = FORMS.get(base)
    if form is None or kwargs.get("out") is not None or not _real(base, args):
        return call(*args, **kwargs)
    if base == name:
        result = form(call, *args, **kwargs)
        return call(*args, **kwargs) if result is None else result
    kept = args[0]
    result = form(getattr(torch, base), kept.clone(), *args[1:], **kwargs)
    return call(*args, **kwargs) if result is None else kept.copy_(result)


def _real(base: str, args: tuple[Any, ...]) -> bool:
    """Whether the form can work on these arguments: real numbers, of a kind that can be looked at."""
    tensors = [a for a in args[:2] if isinstance(a, Tensor)]
    if not tensors or any(t.is_complex() or t.is_meta or t.layout is not torch.strided for t in tensors):
        return False
    first = args[0]
    return base in MIXED or not isinstance(first, Tensor) or first.is_floating_point()


class SafeOps(Effect):
    """Safe forms of operations, at named lines or everywhere, in training and in evaluation.

    Args:
        value: ``{"sites": [{"file": "train.py", "line": 70, "op": "log"}, ...]}``: all operations of these lines (the
            ``op`` is for people). A site may have ``"as": "logsigmoid"`` or ``"log_softmax"``: its log is given any
            number z where it wants a probability, and becomes log(sigmoid(z)) and log(1 - sigmoid(z)), or
            log(softmax(z)) over axis 1. ``{"everywhere": true}``: all operations but those of optimizers and of
            steadygrad.

    Where nothing is unsafe, every operation is torch's own, bit for bit (but for ``exp`` of large values, see
    :mod:`steadygrad.repair.effects.safe_forms`). Not reached: compiled and scripted code, other threads than the one
    that imported torch, operations inside of ``vmap`` and its kin.
    """

    key: ClassVar[str] = "safe_ops"
    eager: ClassVar[bool] = True

    def __init__(self, value: Any) -> None:
        if not isinstance(value, Mapping) or not (value.get("everywhere") is True or value.get("sites")):
            raise NotApplicable(f'safe_ops is {{"sites": [...]}} or {{"everywhere": true}}, got {value!r}')
        sites = [_site(site) for site in value.get("sites") or ()]
        self._mode = _Safe(value.get("everywhere") is True, dict(sites))

    def install(self) -> None:
        self._mode.enter()

    def remove(self) -> None:
        self._mode.leave()


Place = tuple[str, int]


def _site(site: Any) -> tuple[Place, str]:
    function = site.get("as", "")
    if function and function not in LINKS:
        raise NotApplicable(f'a site of safe_ops has "as" one of {", ".join(LINKS)}, got {function!r}')
    return (os.path.basename(str(site["file"])), int(site["line"])), function


class _Safe(RunMode):
    def __init__(self, everywhere: bool, sites: Mapping[Place, str]) -> None:
        super().__init__()
        self._everywhere, self._sites = everywhere, sites
        self._origins = Origins()
        self._links = Links() if any(sites.values()) else None

    def call(self, name: str, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = self._call(name, func, args, kwargs)
        self._origins.saw(name, args, kwargs, out)
        if self._links is not None:
            self._links.saw(name, args, out)
        return out

    def _call(self, name: str, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        base = name if name.startswith("__") else name.removesuffix("_")
        if base not in FORMS or foreign():
            return func(*args, **kwargs)
        site = self._sites.get(_here()) if self._sites else None
        if site is None and not self._everywhere:
            return func(*args, **kwargs)
        if site and self._links is not None and name == "log":
            return self._links.log(args[0], site)
        if name in LOGS and isinstance(args[0], Tensor) and args[0].is_floating_point():
            return self._log(func, args[0], name)
        return safely(name, func, args, kwargs)

    def _log(self, func: Call, x: Tensor, name: str) -> Any:
        """The log of a softmax or a sigmoid is taken of what went into that, where it has come out as 0."""
        unsafe = x < torch.finfo(x.dtype).tiny
        log = self._origins.log_of(x) if bool(unsafe.any()) else None  # host sync
        if log is None or log.shape != x.shape or name != "log":
            return safely(name, func, (x,), {})
        lowest = torch.full_like(log, torch.finfo(x.dtype).tiny).log()
        log = torch.where(log.isinf(), lowest, log)  # of a class that was masked
        return torch.where(unsafe, log, func(torch.where(unsafe, torch.ones_like(x), x)))


def _here() -> Place:
    site = current_site()
    return os.path.basename(site.path), site.line  # the name alone: a script may change its directory
