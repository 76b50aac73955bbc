"""Where in the user's code a run does what a patch may have to change, and by which names its models go there."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from steadygrad.locating.frames import Site, frames, owner
from steadygrad.repair.effects.effect import Models, Step
from steadygrad.repair.survey.surveyor import Surveyor

Place = dict[str, Any]
"""``file`` as people are shown it, ``line``, ``owner`` ("user" or "library"), and ``span``: first line, first column,
last line, last column of the expression that runs, columns in bytes of UTF-8; None where Python does not tell it
(3.10). ``by``: the type of the object whose method the expression has called: "Tensor", "GradScaler"."""

Key = tuple[CodeType, int]  # an instruction of the user's
SCHEDULE_BOUNDS = ("eta_min", "min_lrs", "max_lrs")
LOOKS = (
    1,
    2,
    10,
)  # steps of an optimizer at which schedulers are looked for: the scan of all objects takes time


class Sites(Surveyor):
    """Where optimizers are built and step, where models run forward and losses backward.

    ``found()``:

    * ``optimizers``, in the order in which they were built: ``class`` (name), ``torch`` (is it one of torch's),
      ``built`` (place or None), ``steps`` (places), ``groups`` (their number), ``lr_set_by_hand`` (the rate has changed
      and no scheduler has), ``schedulers`` (``class`` and its bounds of the rate);
    * ``models``: ``prefix`` of its paths in a plan ("" if it is the only one), ``name`` (an expression that is the
      model, at ``place``), ``place`` (where an optimizer is built, or a call of the user's that leads there),
      ``buffers`` (has it any);
    * ``forward``, ``backward``: places, in the order in which they were first reached;
    * ``flags``: options that the script was started with, such as ``--lr``.
    """

    key: ClassVar[str] = "sites"

    def __init__(self, value: Any = None) -> None:
        self._built: weakref.WeakKeyDictionary[Optimizer, _Built] = weakref.WeakKeyDictionary()
        self._known: list[_Built] = []
        self._models: list[dict[str, Any]] = []
        self._roots: set[int] = set()
        self._forward: dict[Key, Place] = {}
        self._backward: dict[Key, Place] = {}
        self._handle: Any = None
        self._add_param_group: Any = None

    # ------------------------------------------------------------------ what the run tells
    def install(self) -> None:
        self._handle = register_module_forward_pre_hook(self._runs)  # type: ignore[arg-type]
        original = self._add_param_group = Optimizer.add_param_group

        def add_param_group(optimizer: Optimizer, param_group: dict[str, Any]) -> None:
            original(optimizer, param_group)
            if self._add_param_group is not None and optimizer not in self._built:
                self._building(optimizer)

        Optimizer.add_param_group = add_param_group  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._add_param_group is not None:
            Optimizer.add_param_group = self._add_param_group  # type: ignore[method-assign]
            self._add_param_group = None

    def _building(self, optimizer: Optimizer) -> None:
        """The first group of a new optimizer: its constructor is on the stack."""
        around = [f for f in frames() if owner(f.f_code.co_filename) in ("user", "library")]
        around = [
            f for f in around if f.f_locals.get("self") is not optimizer
        ]  # a subclass of the user's own
        mine = [f for f in around if owner(f.f_code.co_filename) == "user"]
        built = _Built(optimizer, next((place_of(f) for f in mine or around), None))
        for frame in mine:
            place = place_of(frame)
            built.names += [(name, weakref.ref(module), place) for name, module in named_modules(frame)]
        self._built[optimizer] = built
        self._known.append(built)

    def models(self, models: Models) -> None:
        self._roots = {id(root) for root in models.roots}
        self._models = []
        for root in models.roots:
            inside = {id(m) for m in root.modules()}
            paths = [path for path, m in models.modules.items() if id(m) in inside]
            prefix = min(paths, key=len, default="")
            at_top = {id(m): steps for m, steps in _unwrapped(root)}
            named = [
                (f"{name}{at_top[id(m)]}", place)
                for built in self._known
                for name, ref, place in built.names
                if (m := ref()) is not None and id(m) in at_top
            ]
            name, place = named[0] if named else ("", None)
            buffers = any(True for _ in root.buffers())
            self._models.append({"prefix": prefix, "name": name, "place": place, "buffers": buffers})

    def _runs(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._roots and torch.is_grad_enabled():
            note(self._forward)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        note(self._backward)

    def before_step(self, optimizer: Optimizer) -> Step:
        built = self._built.get(optimizer)
        if built is None:  # unpickled, or built before we came
            built = self._built[optimizer] = _Built(optimizer, None)
            self._known.append(built)
        note(built.steps)
        built.stepped(optimizer)
        return "take"

    def found(self) -> Mapping[str, Any]:
        if not self._known:
            return {}
        return {
            "optimizers": [built.to_json() for built in self._known],
            "models": self._models,
            "forward": list(self._forward.values()),
            "backward": list(self._backward.values()),
            "flags": sorted({word.split("=")[0] for word in sys.argv[1:] if word.startswith("-")}),
        }


class _Built:
    """What is known of one optimizer."""

    def __init__(self, optimizer: Optimizer, place: Place | None) -> None:
        self.kind = type(optimizer)
        self.place = place
        self.names: list[tuple[str, weakref.ref[nn.Module], Place]] = []
        self.steps: dict[Key, Place] = {}
        self._taken = 0
        self._groups = 1
        self._first_lr: list[float] | None = None
        self._lr_changed = False
        self._schedulers: list[dict[str, Any]] = []

    def stepped(self, optimizer: Optimizer) -> None:
        self._taken += 1
        self._groups = len(optimizer.param_groups)
        lr = [float(g["lr"]) for g in optimizer.param_groups if "lr" in g]
        if self._first_lr is None:
            self._first_lr = [
                float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups if "lr" in g
            ]
        self._lr_changed |= lr != self._first_lr
        if self._taken in LOOKS:
            self._schedulers = [
                _schedule(s) for s in _schedulers() if getattr(s, "optimizer", None) is optimizer
            ]

    def to_json(self) -> dict[str, Any]:
        return {
            "class": self.kind.__name__,
            "torch": self.kind.__module__.startswith("torch.optim"),
            "built": self.place,
            "steps": list(self.steps.values()),
            "groups": self._groups,
            "lr_set_by_hand": self._lr_changed and not self._schedulers,
            "schedulers": self._schedulers,
        }


def _schedulers() -> list[Any]:
    """All that live. ``isinstance`` would wake lazy proxies of others."""
    return [x for x in gc.get_objects() if issubclass(type(x), (LRScheduler, ReduceLROnPlateau))]


def _schedule(scheduler: Any) -> dict[str, Any]:
    bounds = {name: getattr(scheduler, name) for name in SCHEDULE_BOUNDS if hasattr(scheduler, name)}
    if "max_lr" in scheduler.optimizer.param_groups[0]:  # OneCycleLR keeps them there
        bounds["max_lrs"] = [group["max_lr"] for group in scheduler.optimizer.param_groups]
    return {"class": type(scheduler).__name__, **bounds}


def note(places: dict[Key, Place]) -> Key | None:
    """Remember the user's expression that is being run. None: it is none of the user's."""
    inner: FrameType | None = None
    for frame in frames():
        whose = owner(frame.f_code.co_filename)
        if whose == "user":
            key = (frame.f_code, frame.f_lasti)
            if key not in places:
                places[key] = place_of(frame, inner)
            return key
        if whose != "machinery":
            inner = frame
    return None


def place_of(frame: FrameType, inner: FrameType | None = None) -> Place:
    """The expression that a live frame is running. ``inner``: the frame that it has called."""
    code, span = frame.f_code, None
    if sys.version_info >= (3, 11):
        line, last, start, end = list(code.co_positions())[frame.f_lasti // 2]
        if None not in (line, last, start, end):
            span = [line, start, last, end]
    return {
        "file": Site(code.co_filename, frame.f_lineno).shown(),
        "line": frame.f_lineno,
        "owner": owner(code.co_filename),
        "by": "" if inner is None or "self" not in inner.f_locals else type(inner.f_locals["self"]).__name__,
        "span": span,
    }


def named_modules(frame: FrameType) -> Iterator[tuple[str, nn.Module]]:
    """Every module that an expression of one or two parts names in this frame."""
    variables = dict(frame.f_locals)
    for name, value in frame.f_globals.items():
        variables.setdefault(name, value)
    for name, value in variables.items():
        if not name.isidentifier():  # a comprehension's own
            continue
        if issubclass(type(value), nn.Module):
            yield name, value
        for step, part in _parts(value):
            if issubclass(type(part), nn.Module):
                yield f"{name}{step}", part


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What lists, dicts and plain objects of the user's hold, with how one gets there."""
    kind = type(value)
    if kind in (list, tuple):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if kind is dict:
        return [(f"[{key!r}]", part) for key, part in value.items() if type(key) in (str, int)]
    home = getattr(sys.modules.get(kind.__module__), "__file__", None) or "<string>"
    if kind.__module__ != "__main__" and owner(home) != "user":
        return []
    held = getattr(value, "__dict__", {})
    inner = held.get("_modules") if issubclass(kind, nn.Module) else held
    return [(f".{name}", part) for name, part in (inner or {}).items() if str(name).isidentifier()]


def _unwrapped(root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The root, and what wrappers hold of it, with how one gets from each to the user's own module."""
    inner: list[nn.Module] = [root]
    while (held := getattr(inner[-1], "_orig_mod", None)) is not None or (
        issubclass(type(inner[-1]), (DistributedDataParallel, DataParallel))
        and (held := inner[-1].module) is not None
    ):
        inner.append(held)  # type: ignore[arg-type]
    for i, module in enumerate(inner):
        parallel = [m for m in inner[i:] if issubclass(type(m), (DistributedDataParallel, DataParallel))]
        yield module, ".module" * len(parallel)
