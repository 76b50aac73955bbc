"""Nested plain values and tensors: taken apart for keeping, and put back in place.

A taken value is made of plain values, :class:`Mapping_`, :class:`Sequence_`, :class:`TensorRef`,
:class:`ByReference` and :data:`UNKEPT`. It shares no memory with the live value, and a tensor in it is only a
number: the place of its copy among the copies of a snapshot.
"""

from __future__ import annotations

import enum
import functools
import operator
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steadygrad.guard.tensors import Layout, Unkeepable, leaves, memory_key

PLAIN = (type(None), bool, int, float, str, complex, bytes)
MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
SEQUENCES = (list, tuple, deque, set, frozenset)
MAX_DEPTH = 32

# Values without state of their own: the same object serves after a rollback.
_STATELESS = (
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
    range,
    slice,
    type,
    enum.Enum,
    np.generic,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
)


class _Sentinel(enum.Enum):
    UNKEPT = "not kept"
    MISSING = "nothing there"


UNKEPT = _Sentinel.UNKEPT
"""Stands where a value could not be kept: putting back leaves the live value alone."""
MISSING = _Sentinel.MISSING


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor, by the places of its copies."""

    places: tuple[int, ...]  # one for an ordinary tensor, several for a wrapper
    shape: tuple[int, ...]  # its copy has 1 where it was expanded
    device: str
    ordinary: bool  # one copy is all that is needed to make it anew


@dataclass(frozen=True, slots=True)
class ParamKey:
    """A parameter that serves as a key, as in ``optimizer.state``."""

    uid: int | None  # of this process; None in what came from a file
    name: str


@dataclass(frozen=True, slots=True)
class Mapping_:
    kind: type
    pairs: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True, slots=True)
class Sequence_:
    kind: type
    items: tuple[Any, ...]
    maxlen: int | None = None  # of a deque


@dataclass(frozen=True, slots=True)
class ByReference:
    """An object that cannot be copied: the snapshot remembers which one it was."""

    value: Any


class Taking:
    """Takes live values apart, and collects the tensors to copy.

    Args:
        first: place of the first tensor.
        key_of: the name of a parameter that serves as a key, or None if it is unknown.
    """

    def __init__(
        self, first: int = 0, key_of: Callable[[Tensor], ParamKey | None] = lambda tensor: None
    ) -> None:
        self.names: list[str] = []
        self.live: list[Tensor] = []
        self.left_out: list[str] = []
        self._first = first
        self._key_of = key_of
        self._places: dict[tuple[object, ...], int] = {}

    def tensor(self, name: str, tensor: Tensor) -> Any:
        try:
            parts = leaves(tensor)
        except Unkeepable as reason:
            self.left_out.append(f"{name} {reason}")
            return UNKEPT
        except Exception as error:  # noqa: BLE001 - a tensor subclass may fail in any way
            self.left_out.append(f"{name} cannot be taken apart: {type(error).__name__}: {error}")
            return UNKEPT
        places = tuple(self._place(name + suffix, leaf) for suffix, leaf in parts)
        ordinary = len(parts) == 1 and parts[0][0] == ""
        return TensorRef(places, tuple(tensor.shape) if ordinary else (), str(tensor.device), ordinary)

    def _place(self, name: str, leaf: Tensor) -> int:
        key = memory_key(leaf)
        if key not in self._places:
            self._places[key] = self._first + len(self.live)
            self.names.append(name)
            self.live.append(leaf)
        return self._places[key]

    def value(self, name: str, value: Any, depth: int = 0) -> Any:
        """Take one value apart; what cannot be kept is listed in ``left_out``."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if issubclass(kind, Tensor):
            return self.tensor(name, value)
        if depth >= MAX_DEPTH:
            self.left_out.append(f"{name} is nested more than {MAX_DEPTH} deep")
            return UNKEPT
        if kind in MAPPINGS:
            return Mapping_(kind, tuple(self._pairs(name, value, depth)))
        if kind in SEQUENCES or (issubclass(kind, tuple) and hasattr(kind, "_make")):
            items = tuple(self.value(f"{name}.{i}", item, depth + 1) for i, item in enumerate(value))
            return Sequence_(kind, items, value.maxlen if kind is deque else None)
        if kind is np.ndarray and not value.dtype.hasobject:
            return value.copy()
        if not issubclass(kind, _STATELESS):
            self.left_out.append(f"{name} is a {kind.__name__}, kept by reference only")
        return ByReference(value)

    def _pairs(self, name: str, mapping: dict[Any, Any], depth: int) -> list[tuple[Any, Any]]:
        pairs = []
        for key, value in list(mapping.items()):
            # never the text of a key that is no plain value: a tensor's takes a millisecond
            label = f"{name}.{key}" if type(key) in PLAIN else f"{name}.({type(key).__name__})"
            if isinstance(key, Tensor):
                param = self._key_of(key)
                if param is None:
                    self.left_out.append(f"{name} has a key that is a tensor of no known module or optimizer")
                    continue
                key, label = param, f"{name}[{param.name}]"
            pairs.append((key, self.value(label, value, depth + 1)))
        return pairs


class PuttingBack:
    """Puts taken values back, in place where the live value allows it, and collects the copies to make.

    Args:
        saved: the kept copies, by place.
        find: the live parameter of a key, or None.
    """

    def __init__(
        self, saved: list[Tensor], find: Callable[[ParamKey], Tensor | None] = lambda key: None
    ) -> None:
        self.targets: list[Tensor] = []
        self.sources: list[Tensor] = []
        self.problems: list[str] = []
        self._saved = saved
        self._find = find
        self._claimed: dict[tuple[object, ...], int] = {}
        self._made: dict[int, Tensor] = {}
        self._owner: Tensor | None = None  # parameter whose optimizer state is being put back

    def fits(self, live: Tensor, ref: TensorRef) -> bool:
        """Whether the kept values can be copied into ``live``."""
        try:
            parts = leaves(live)
        except Exception:  # noqa: BLE001 - a tensor subclass may fail in any way: then it does not fit
            return False
        if len(parts) != len(ref.places):
            return False
        kept = [Layout.of(self._saved[place]) for place in ref.places]
        return [Layout.of(leaf) for _, leaf in parts] == kept

    def tensor(self, live: Any, ref: TensorRef) -> Any:
        """``live`` with a copy under way if it fits, else a new tensor with the kept values."""
        if isinstance(live, Tensor) and self.fits(live, ref):
            parts = [leaf for _, leaf in leaves(live)]
            keys = [memory_key(leaf) for leaf in parts]
            if all(
                self._claimed.get(key, place) == place for key, place in zip(keys, ref.places, strict=True)
            ):
                for key, leaf, place in zip(keys, parts, ref.places, strict=True):
                    if key not in self._claimed:
                        self._claimed[key] = place
                        self.targets.append(leaf)
                        self.sources.append(self._saved[place])
                return live
        if not ref.ordinary and live is MISSING and self._owner is not None:
            like = torch.zeros_like(self._owner.detach())  # moments are sharded as their parameter is
            if self.fits(like, ref):
                return self.tensor(like, ref)
        if not ref.ordinary:
            self.problems.append(f"a tensor made of {len(ref.places)} parts cannot be made anew")
            return live if live is not MISSING else UNKEPT
        return self._new(ref)

    def _new(self, ref: TensorRef) -> Tensor:
        place = ref.places[0]
        if place not in self._made:
            self._made[place] = self._saved[place].to(ref.device, copy=True)
        made = self._made[place]
        return made if made.shape == ref.shape else made.expand(ref.shape)

    def value(self, live: Any, taken: Any) -> Any:
        """What has to stand where ``live`` stands (:data:`MISSING`: nothing does), changed in place if possible."""
        if isinstance(taken, TensorRef):
            return self.tensor(live, taken)
        if isinstance(taken, Mapping_):
            return self._mapping(live, taken)
        if isinstance(taken, Sequence_):
            return self._sequence(live, taken)
        if isinstance(taken, ByReference):
            return taken.value
        if isinstance(taken, np.ndarray):
            if type(live) is np.ndarray and live.shape == taken.shape and live.dtype == taken.dtype:
                live[...] = taken
                return live
            return taken.copy()
        return live if taken is UNKEPT else taken

    def _mapping(self, live: Any, taken: Mapping_) -> Any:
        target = live if type(live) in MAPPINGS else ({} if taken.kind is defaultdict else taken.kind())
        self.into(target, taken)
        return target

    def into(
        self, target: dict[Any, Any], taken: Mapping_, keep: Callable[[Hashable], bool] = lambda key: False
    ) -> None:
        """Make ``target`` hold what was taken: keys born later go, except those that ``keep`` holds back."""
        wanted: dict[Any, Any] = {}
        for key, value in taken.pairs:
            live_key = self._find(key) if isinstance(key, ParamKey) else key
            if live_key is None and isinstance(key, ParamKey):
                self.problems.append(f"{key.name} is no longer there")
                continue
            wanted[live_key] = value
        for key in [k for k in target if k not in wanted and not keep(k)]:
            del target[key]
        for key, value in wanted.items():
            if isinstance(key, Tensor):
                self._owner = key
            put = self.value(target.get(key, MISSING), value)
            if isinstance(key, Tensor):
                self._owner = None
            if put is not MISSING and put is not UNKEPT:
                target[key] = put

    def _sequence(self, live: Any, taken: Sequence_) -> Any:
        kind, same = taken.kind, type(live) is taken.kind
        old: list[Any] = list(live) if same and kind not in (set, frozenset) else []
        old += [MISSING] * (len(taken.items) - len(old))
        items = [self.value(was, item) for was, item in zip(old, taken.items, strict=False)]
        items = [None if item is MISSING or item is UNKEPT else item for item in items]
        if same and kind is list:
            live[:] = items
            return live
        if same and kind in (deque, set):
            live.clear()
            live.extend(items) if kind is deque else live.update(items)
            return live
        if same and kind is not frozenset and len(live) == len(items) and all(map(operator.is_, live, items)):
            return live  # a tuple that holds the very same
        if kind is deque:
            return deque(items, taken.maxlen)
        make: Any = getattr(kind, "_make", kind)  # a named tuple is not made of an iterable
        return make(items)
