"""``loss_calls``: a loss is given what it wants."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from steadygrad.repair.effects._modes import RunMode, foreign
from steadygrad.repair.effects._origins import Scores
from steadygrad.repair.effects.effect import Effect, NotApplicable

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

UNDOUBLED = {  # oddity -> losses that are given scores in place of probabilities
    "softmax_before_cross_entropy": ("cross_entropy", "log_softmax"),
    "sigmoid_before_cross_entropy": ("cross_entropy", "log_softmax"),
    "sigmoid_before_bce_logits": ("binary_cross_entropy_with_logits",),
}
PAIRED = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
BY_HAND = ("sub", "subtract", "__rsub__", "rsub", "mul", "multiply")
FIXES = (*UNDOUBLED, "nll_without_log_softmax", "one_unit_softmax", "broadcast_in_loss")


class LossCalls(Effect):
    """Puts calls of losses right, in training and in evaluation.

    Args:
        value: names of what is wrong, as :mod:`steadygrad.graph.oddities` calls it:

            ``softmax_before_cross_entropy``, ``sigmoid_before_cross_entropy``, ``sigmoid_before_bce_logits``
                the loss is given what went into the softmax or sigmoid;
            ``nll_without_log_softmax``
                ``nll_loss`` is given the log-softmax;
            ``one_unit_softmax``
                a softmax over one unit is a sigmoid, a cross entropy over one class a binary one;
            ``broadcast_in_loss``
                where a prediction [N, 1] meets a target [N], or the other way round, the target gets the shape of
                the prediction.

    What the model puts out stays what it is, but for ``one_unit_softmax``. A call that has none of this is torch's own.
    """

    key: ClassVar[str] = "loss_calls"
    eager: ClassVar[bool] = True

    def __init__(self, value: Any) -> None:
        unknown = [fix for fix in value if fix not in FIXES] if isinstance(value, (list, tuple)) else [value]
        if unknown or not value:
            raise NotApplicable(f"loss_calls is a list of {', '.join(FIXES)}, got {value!r}")
        self._mode = _Fixes(set(value))

    def install(self) -> None:
        self._mode.enter()

    def remove(self) -> None:
        self._mode.leave()


class _Fixes(RunMode):
    def __init__(self, fixes: set[str]) -> None:
        super().__init__()
        self._fixes = fixes
        self._undoubled = {loss for fix in fixes for loss in UNDOUBLED.get(fix, ())}
        self._scores = Scores()

    def call(self, name: str, func: Any, args: Args, kwargs: Kwargs) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_floating_point() and not foreign():
            if name in self._undoubled and (scores := self._scores.of(first)) is not None:
                return func(scores, *args[1:], **kwargs)
            if name == "nll_loss" and "nll_without_log_softmax" in self._fixes:
                return func(self._log_probabilities(first), *args[1:], **kwargs)
            if "one_unit_softmax" in self._fixes and (out := _one_unit(name, args, kwargs)) is not None:
                return out
        if "broadcast_in_loss" in self._fixes and (name in PAIRED or name in BY_HAND) and not foreign():
            args = _alike(name, args)
        out = func(*args, **kwargs)
        self._scores.saw(name, args, kwargs, out)
        return out

    def _log_probabilities(self, x: Tensor) -> Tensor:
        """Of what came out of a softmax, of plain scores, or what are log-probabilities already."""
        scores = self._scores.of(x)
        return torch.log_softmax(x if scores is None else scores, 1 if x.dim() > 1 else 0)


def _one_unit(name: str, args: Args, kwargs: Kwargs) -> Tensor | None:
    x = args[0]
    if name in ("softmax", "log_softmax"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        # Of more than two axes it is an attention with one key.
        if not isinstance(dim, int) or not 0 < x.dim() <= 2 or x.shape[dim] != 1 or x.numel() == 1 == x.dim():
            return None
        return torch.sigmoid(x) if name == "softmax" else F.logsigmoid(x)
    if name == "cross_entropy" and x.dim() == 2 and x.shape[1] == 1 and len(args) > 1:
        target = args[1].reshape(x.shape).to(x.dtype)
        return F.binary_cross_entropy_with_logits(x, target, reduction=kwargs.get("reduction", "mean"))
    return None


def _alike(name: str, args: Args) -> Args:
    """The same arguments, a target [N] as [N, 1] where the prediction is, or [N, 1] as [N]."""
    if len(args) < 2 or not all(isinstance(a, Tensor) for a in args[:2]):
        return args
    a, b = args[:2]
    if a.shape == b.shape or a.numel() != b.numel() or a.numel() < 2 or abs(a.dim() - b.dim()) != 1:
        return args
    longer, shorter = (a, b) if a.dim() > b.dim() else (b, a)
    if longer.shape[-1] != 1 or longer.shape[:-1] != shorter.shape:
        return args
    if a.requires_grad == b.requires_grad:
        return (a, b.reshape(a.shape), *args[2:]) if name in PAIRED else args
    if a.requires_grad:
        return (a, b.reshape(a.shape), *args[2:])
    return (a.reshape(b.shape), b, *args[2:])
