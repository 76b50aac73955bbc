"""Where the user's code cuts gradients off, and which parameters of optimizers have none for it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from steadygrad.init._trace import tensors_in
from steadygrad.locating.frames import Site
from steadygrad.probe.names import find_compiled, flat_params
from steadygrad.repair.effects._cuts import cut_of, op_of, place_of_cut
from steadygrad.repair.effects._modes import RunMode
from steadygrad.repair.effects.effect import Models, Step
from steadygrad.repair.survey.surveyor import Surveyor

LOOKS = 8  # steps of every optimizer
MOST = 40  # steps of all of them together
WALKS = 4  # graphs that are walked for one site between two steps
MAX_NODES = 20_000  # of a graph
MAX_SITES = 64
VALUES = 1024  # of a parameter, that are compared
BY_HAND = 2  # times that a parameter has moved between two steps, from which on somebody else trains it

Key = tuple[Site, str]


@dataclass
class _Cut:
    count: int = 0
    walks: int = 0  # since the last step
    reaches: bool = False  # what comes out of it goes into a loss
    below: set[int] = field(default_factory=set)  # leaves that lose their gradient in it


class Cuts(Surveyor):
    """Where ``detach``, ``.data`` and ``no_grad`` cut off what hangs on parameters of an optimizer.

    ``found()``: ``sites``, each with ``file`` as people are shown it, ``line``, ``op``, ``per_step`` (how often a
    step), ``reaches`` (the result goes into a loss), ``parameters`` (of optimizers, that lie below) and ``untrained``
    (of these, such as had no gradient at any step of their optimizer, and that nobody moves by hand, as targets that
    follow are moved). Over the first eight steps of every optimizer; compiled models are not looked at.
    """

    key: ClassVar[str] = "cuts"

    def __init__(self, value: Any = None) -> None:
        self._mode: _Watch | None = _Watch()
        self._on = False
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._held: set[int] = set()
        self._fed: set[int] = set()
        self._parts: dict[int, Tensor] = {}  # values of parameters, behind a step
        self._moved: dict[int, int] = {}
        self._found: list[dict[str, Any]] = []

    def models(self, models: Models) -> None:
        for optimizer in models.optimizers:
            self._steps.setdefault(optimizer, 0)
        if self._mode is not None and not self._on and not find_compiled():
            self._on = True
            self._mode.enter()

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if self._mode is not None:
            self._mode.differentiated(roots)

    def before_step(self, optimizer: Optimizer) -> Step:
        if self._mode is None or not self._on:
            return "take"
        below = {key for cut in self._mode.cuts.values() for key in cut.below}
        for p in flat_params(optimizer):
            if id(p) not in below:
                continue
            self._held.add(id(p))
            if _has_gradient(p):
                self._fed.add(id(p))
            elif id(p) in self._parts and not torch.equal(self._parts[id(p)], _part(p)):
                self._moved[id(p)] = self._moved.get(id(p), 0) + 1
        return "take"

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        if self._mode is None or not self._on:
            return
        starving = self._held - self._fed
        self._parts.update({id(p): _part(p) for p in flat_params(optimizer) if id(p) in starving})
        self._mode.next_step()
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        steps = self._steps.values()
        if min(steps) >= LOOKS or sum(steps) >= MOST:
            self._end()

    def remove(self) -> None:
        if self._mode is not None:
            self._end()

    def found(self) -> Mapping[str, Any]:
        if self._mode is not None:
            self._found = self._sites(self._mode)
        return {"sites": self._found} if self._found else {}

    def _end(self) -> None:
        assert self._mode is not None
        self._found = self._sites(self._mode)
        self._mode.leave()
        self._mode = None

    def _sites(self, mode: _Watch) -> list[dict[str, Any]]:
        by_hand = {key for key, times in self._moved.items() if times >= BY_HAND}
        starving = self._held - self._fed - by_hand
        return [
            {
                "file": site.shown(),
                "line": site.line,
                "op": op,
                "per_step": cut.count / max([1, *(n - 1 for n in self._steps.values())]),
                "reaches": cut.reaches,
                "parameters": len(cut.below & self._held),
                "untrained": len(cut.below & starving),
            }
            for (site, op), cut in mode.cuts.items()
            if cut.below & self._held
        ]


class _Watch(RunMode):
    """Notes the cuts, and follows what comes out of them up to the losses. The user never feels an error of it."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: dict[Key, _Cut] = {}
        self._block: Key | None = None  # the user's, in which gradients are off
        self._marks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # keys of the cuts behind a tensor
        self._whole = False  # the first pass may have begun before we came: it is not counted
        self._broken = False

    def differentiated(self, roots: Sequence[Tensor]) -> None:
        for key in self._behind(roots):
            self.cuts[key].reaches = True

    def next_step(self) -> None:
        for cut in self.cuts.values():
            cut.walks = 0
            cut.count *= self._whole
        self._whole = True

    def call(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keys: set[Key] = set()
        try:
            if not self._broken:
                keys = self._look(name, func, args, kwargs)
        except Exception:  # noqa: BLE001 - the user's pass goes on as if nobody had looked
            self._broken = True
        out = func(*args, **kwargs)
        if keys:
            for tensor in tensors_in((out, args[0]) if name == "__setitem__" else out):
                if not isinstance(tensor, nn.Parameter):
                    self._marks[tensor] = keys | self._behind([tensor])
        return out

    def _look(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[Key]:
        """The cuts behind what the call is about to make."""
        op, cut = op_of(name, func), cut_of(name, func, args)
        if op == "no_grad":
            if cut or args[0]:
                self._block = self._key(op, func) if cut else None
            return set()
        tensors = list(tensors_in((args, kwargs)))
        behind = self._behind(tensors)
        block = None if torch.is_grad_enabled() else self._block
        losing = [t for t in tensors if t.requires_grad] if cut or block else []
        own = self._key(op, func) if cut or op and (behind or block) else None
        if own is not None and not cut:  # what has lost its history before would lose it here once more
            self.cuts[own].below.update(*(self.cuts[key].below for key in behind))
        here = {key for key in (block, own) if key is not None and (losing or key is own)}
        for key in here:
            for tensor in losing:
                self._walk(self.cuts[key], tensor)
        return behind | here

    def _key(self, op: str, func: Any) -> Key | None:
        """The cut at hand, counted; None if it is not the user's."""
        site = place_of_cut(func)
        if site is None or (site, op) not in self.cuts and len(self.cuts) >= MAX_SITES:
            return None
        self.cuts.setdefault((site, op), _Cut()).count += 1
        return site, op

    def _behind(self, tensors: Sequence[Tensor]) -> set[Key]:
        return {key for tensor in tensors for key in self._marks.get(tensor, ())}

    def _walk(self, cut: _Cut, tensor: Tensor) -> None:
        """Add the leaves of a tensor to what lies below a cut."""
        if tensor.grad_fn is None:
            cut.below.add(id(tensor))
        elif cut.walks < WALKS:
            cut.walks += 1
            cut.below |= _leaves(tensor)


def _leaves(tensor: Tensor) -> set[int]:
    """The leaves that a tensor with a history hangs on, by identity."""
    queue, found = deque([tensor.grad_fn]), set()
    seen: set[Any] = {tensor.grad_fn}
    while queue and len(seen) < MAX_NODES:
        node: Any = queue.popleft()
        if type(node).__name__ == "AccumulateGrad":
            found.add(id(node.variable))
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        queue.extend(new)
    return found


def _has_gradient(p: Tensor) -> bool:
    """Whether any has come, as :class:`steadygrad.probe.idle.IdleSteps` has it: a matrix of zeros is none."""
    grad = p.grad
    return grad is not None and (grad.is_sparse or p.dim() < 2 or bool(grad.any()))  # host sync


def _part(p: Tensor) -> Tensor:
    """A copy of the first values."""
    return p.detach().flatten()[:VALUES].clone()
