"""Where a probability came from: its log is better taken there, in one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Log = Callable[[], Tensor]

SOFTMAXES = ("softmax", "special_softmax")
SIGMOIDS = ("sigmoid", "special_expit", "expit")
ONE_MINUS = ("__rsub__", "rsub", "sub", "subtract")
# What moves values and does not change them: the log of what is picked is picked from the log.
PICKS = frozenset(
    "gather __getitem__ select squeeze unsqueeze view reshape flatten unflatten transpose permute movedim index_select "
    "take_along_dim narrow chunk contiguous t clone expand masked_select diagonal".split()
)


class Origins:
    """Remembers of each tensor that came out of a softmax or a sigmoid how its log is computed without rounding to 0.

    Followed are 1 - sigmoid, and views and picks of all these. What is remembered is let go with the tensor.

    Example:
        >>> origins, z = Origins(), torch.tensor([-200.0])
        >>> p = torch.sigmoid(z)
        >>> origins.saw("sigmoid", (z,), {}, p)
        >>> p.log(), origins.log_of(p)
        (tensor([-inf]), tensor([-200.]))
    """

    def __init__(self) -> None:
        self._logs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._complements: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # log(1 - p)

    def saw(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has made ``out``."""
        if not isinstance(out, Tensor) or not args:
            return
        x = args[0]
        if name in SOFTMAXES and isinstance(x, Tensor):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int):
                self._logs[out] = lambda: torch.log_softmax(x, dim)
        elif name in SIGMOIDS:
            self._logs[out] = lambda: F.logsigmoid(x)
            self._complements[out] = lambda: F.logsigmoid(-x)
        elif name in ONE_MINUS:
            taken = _taken_from_one(name, args)
            if taken is not None and (log := self._complements.get(taken)) is not None:
                self._logs[out] = log
        elif name in PICKS and isinstance(x, Tensor):
            for known in (self._logs, self._complements):
                if (log := known.get(x)) is not None:
                    known[out] = _picked(log, name, args[1:], kwargs)

    def log_of(self, p: Tensor) -> Tensor | None:
        """log(p), computed where p came from; None if that is not known."""
        log = self._logs.get(p)
        return None if log is None else log()


def _picked(log: Log, name: str, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Log:
    return lambda: getattr(Tensor, name)(log(), *rest, **kwargs)


def _taken_from_one(name: str, args: tuple[Any, ...]) -> Tensor | None:
    """x in 1 - x."""
    if len(args) < 2:
        return None
    one, x = (args[1], args[0]) if name in ("__rsub__", "rsub") else (args[0], args[1])
    if isinstance(one, Tensor) and one.numel() == 1 and not one.requires_grad:
        one = one.item()
    return x if isinstance(x, Tensor) and isinstance(one, (int, float)) and one == 1 else None


class Links:
    """Remembers 1 - z and z + a little, for a log that wants a probability and is given any number z.

    Example:
        >>> links, z = Links(), torch.tensor([-3.0])
        >>> one_minus = 1 - z
        >>> links.saw("__rsub__", (z, 1), one_minus)
        >>> links.log(z, "logsigmoid"), links.log(one_minus, "logsigmoid")  # log p and log(1 - p) of p = sigmoid(z)
        (tensor([-3.0486]), tensor([-0.0486]))
    """

    LITTLE = 1e-3  # an epsilon that was meant to keep the log finite

    def __init__(self) -> None:
        self._scores: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._complements: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def saw(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        if not isinstance(out, Tensor) or len(args) < 2:
            return
        if name in ONE_MINUS and (z := _taken_from_one(name, args)) is not None:
            self._complements[out] = self._scores.get(z, z)
        elif name in ("add", "__add__", "__radd__") and isinstance(args[0], Tensor):
            if isinstance(args[1], float) and 0 < args[1] < self.LITTLE:
                z = args[0]
                if z in self._complements:
                    self._complements[out] = self._complements[z]
                else:
                    self._scores[out] = self._scores.get(z, z)

    def log(self, x: Tensor, function: str) -> Tensor:
        """log p or log(1 - p), with p the ``function`` ("logsigmoid", "log_softmax" over axis 1) of z."""
        if x in self._complements:
            return F.logsigmoid(-self._complements[x])
        z = self._scores.get(x, x)
        return F.logsigmoid(z) if function == "logsigmoid" else torch.log_softmax(z, min(1, z.dim() - 1))


class Scores:
    """Remembers of each tensor that came out of a softmax or a sigmoid what went in. Followed are views and picks.

    Example:
        >>> scores, z = Scores(), torch.tensor([[1.0, 2.0]])
        >>> p = z.softmax(1)
        >>> scores.saw("softmax", (z, 1), {}, p)
        >>> scores.of(p) is z, scores.of(z)
        (True, None)
    """

    def __init__(self) -> None:
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def saw(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not isinstance(out, Tensor) or not args or not isinstance(args[0], Tensor):
            return
        x = args[0]
        if name in SOFTMAXES or name in SIGMOIDS:
            self._known[out] = lambda: x
        elif name in PICKS and (known := self._known.get(x)) is not None:
            self._known[out] = _picked(known, name, args[1:], kwargs)

    def of(self, p: Any) -> Tensor | None:
        """The scores that p was made from; None if it was made otherwise."""
        known = self._known.get(p) if isinstance(p, Tensor) else None
        return None if known is None else known()
