"""What the state of a run is: every tensor and every plain value that the next step depends on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from steadygrad._foreach import nonfinite
from steadygrad.guard.discover import find_scalers as find_scalers
from steadygrad.guard.discover import find_schedulers as find_schedulers
from steadygrad.guard.image import Image, KeptHelper, KeptOptimizer, KeptTensor
from steadygrad.guard.tensors import Layout, is_simple, num_bytes, plainly
from steadygrad.guard.tree import PLAIN, UNKEPT, Mapping_, ParamKey, Taking, TensorRef

# Of every module; `training` is the loop's business, the rest is torch's.
_MODULE_OWN = frozenset(vars(nn.Module()))

_uids = WeakTensorKeyDictionary()  # one for the process, so that snapshots of different runs are told apart
_next_uid = itertools.count()


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A parameter or buffer of the run as it is now."""

    name: str
    tensor: Tensor
    kind: str  # "param" or "buffer"
    uid: int


@dataclass(frozen=True, slots=True)
class Capture:
    """The state at one moment: its image, and the live tensors whose values are still to be copied."""

    image: Image
    names: list[str]
    live: list[Tensor]
    constant: list[Tensor | None]  # what a tensor that may hold infinities has held from the start
    left_out: tuple[str, ...]

    def nonfinite_names(self) -> tuple[str, ...]:
        """Names of the live tensors that hold a NaN or an infinity they did not hold from the start."""
        with plainly():
            return names_of_nonfinite(self.names, self.live, self.constant)


class TrainingState:
    """Everything that the next step of a run depends on, by reference.

    Parameters and buffers of all dtypes (each memory once), the optimizers' state however nested, their groups'
    hyperparameters, schedulers, gradient scalers, and the plain attributes of modules and optimizers (step
    counters). Random number generators belong to the snapshot. Parameters of an optimizer that belong to no
    module are included. Nothing is written here, and nothing is attached to the user's objects.

    Args:
        modules: roots of module trees. The tensors of the first are named as its ``named_parameters`` has them,
            those of the others have the class and number of their root in front: ``Critic1.0.weight``.
        optimizers: torch optimizers.
        schedulers: objects with ``state_dict`` and ``load_state_dict``.
        scalers: gradient scalers.

    The lists grow through the ``add_`` methods only; what is known already is not added again.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> state = TrainingState([model], [torch.optim.SGD(model.parameters(), lr=0.1)])
        >>> [t.name for t in state.tensors()]
        ['weight', 'bias']
        >>> state.memory_bytes()
        12
    """

    def __init__(
        self,
        modules: Sequence[nn.Module] = (),
        optimizers: Sequence[Optimizer] = (),
        schedulers: Sequence[Any] = (),
        scalers: Sequence[Any] = (),
    ) -> None:
        self.modules: list[nn.Module] = []
        self.optimizers: list[Optimizer] = []
        self.schedulers: list[Any] = []
        self.scalers: list[Any] = []
        self._listeners: list[Callable[[], None]] = []
        self._constants: dict[tuple[str, Layout], Tensor | None] = {}
        for module in modules:
            self.add_module(module)
        for optimizer in optimizers:
            self.add_optimizer(optimizer)
        for scheduler in schedulers:
            self.add_scheduler(scheduler)
        for scaler in scalers:
            self.add_scaler(scaler)

    # ------------------------------------------------------------------ growing
    def add_module(self, module: nn.Module) -> None:
        """Take another module tree in. Existing snapshots take its present values as their own."""
        self._add(self.modules, module)

    def add_optimizer(self, optimizer: Optimizer) -> None:
        """Take another optimizer in, best before its first step: its present state is what snapshots know of it."""
        self._add(self.optimizers, optimizer)

    def add_scheduler(self, scheduler: Any) -> None:
        """Take a scheduler in."""
        self._add(self.schedulers, scheduler)

    def add_scaler(self, scaler: Any) -> None:
        """Take a gradient scaler in."""
        self._add(self.scalers, scaler)

    def on_added(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each addition (the ring completes its snapshots then)."""
        self._listeners.append(listener)

    def _add(self, known: list[Any], item: Any) -> None:
        if any(item is k for k in known):
            return
        known.append(item)
        for listener in self._listeners:
            listener()

    # ------------------------------------------------------------------ reading
    def tensors(self) -> list[LiveTensor]:
        """Every parameter and buffer, each once under its first name, as the run has them now."""
        found: dict[int, LiveTensor] = {}

        def see(name: str, tensor: Tensor, kind: str) -> None:
            if id(tensor) not in found:
                found[id(tensor)] = LiveTensor(name, tensor, kind, _uid(tensor))

        for prefix, root in self._roots():
            for path, module in root.named_modules():
                front = prefix + path + ("." if path else "")
                for kind, table in (("param", module._parameters), ("buffer", module._buffers)):
                    for name, tensor in list(table.items()):
                        if tensor is not None:
                            see(front + name, tensor, kind)
        for i, optimizer in enumerate(self.optimizers):
            for j, group in enumerate(optimizer.param_groups):
                for k, param in enumerate(group["params"]):
                    see(f"optimizer{i}.group{j}.{k}", param, "param")
        return list(found.values())

    def modules_with_attributes(self) -> dict[str, nn.Module]:
        """Modules, by path, whose plain attributes may count as state: those whose class is not torch's own."""
        found: dict[str, nn.Module] = {}
        for prefix, root in self._roots():
            for path, module in root.named_modules():
                if not _all_torch(type(module)):
                    found.setdefault(prefix + path, module)
        return found

    def capture(self, known: Image | None = None, first: int = 0) -> Capture:
        """The state as it is now, without copying a tensor.

        Args:
            known: take only what this image does not have.
            first: place of the first tensor.
        """
        known = known or Image()
        live = self.tensors()
        keys = {id(t.tensor): ParamKey(t.uid, t.name) for t in live}
        taking = Taking(first, lambda tensor: keys.get(id(tensor)))
        with plainly():
            image = self._image(live, keys, known, taking)
            constant = self._constants_of(image, live, taking, first)
        return Capture(image, taking.names, taking.live, constant, tuple(taking.left_out))

    def nonfinite_names(self) -> tuple[str, ...]:
        """Names of the tensors that hold a NaN or an infinity, optimizer state included; one read of the memory.

        A buffer or frozen parameter that has held infinities from the start and still holds the same (a mask of
        ``-inf``) is not named.
        """
        return self.capture().nonfinite_names()

    def memory_bytes(self) -> int:
        """What one snapshot costs at present, in bytes."""
        return sum(map(num_bytes, self.capture().live))

    # ------------------------------------------------------------------ inside
    def _roots(self) -> Iterable[tuple[str, nn.Module]]:
        for i, root in enumerate(self.modules):
            yield (f"{type(root).__name__}{i}." if i else ""), root

    def _image(
        self, live: list[LiveTensor], keys: dict[int, ParamKey], known: Image, taking: Taking
    ) -> Image:
        image = Image()
        # A buffer that the model replaces each step has a new identity but its old name: it has not joined.
        old = {t.uid for t in known.tensors} | {t.name for t in known.tensors}
        for t in live:
            if t.uid not in old and t.name not in old:
                ref = taking.tensor(t.name, t.tensor)
                if isinstance(ref, TensorRef):
                    image.tensors.append(KeptTensor(t.name, t.uid, t.kind, ref))
        for path, module in self.modules_with_attributes().items():
            image.attributes[path] = plain_attributes(module)
        for i, optimizer in list(enumerate(self.optimizers))[len(known.optimizers) :]:
            image.optimizers.append(_keep_optimizer(i, optimizer, keys, taking))
        position = {id(optimizer): i for i, optimizer in enumerate(self.optimizers)}
        for name, items, had, to in (
            ("scheduler", self.schedulers, known.schedulers, image.schedulers),
            ("scaler", self.scalers, known.scalers, image.scalers),
        ):
            for i, item in list(enumerate(items))[len(had) :]:
                of = position.get(id(getattr(item, "__dict__", {}).get("optimizer")))
                to.append(KeptHelper(type(item).__name__, of, _keep_helper(f"{name}{i}", item, taking)))
        return image

    def _constants_of(
        self, image: Image, live: list[LiveTensor], taking: Taking, first: int
    ) -> list[Tensor | None]:
        """For each tensor to copy: the value with infinities that it may have, as it has had it from the start."""
        trained = {id(p) for o in self.optimizers for g in o.param_groups for p in g["params"]}
        frozen = {t.uid for t in live if t.kind == "buffer" or id(t.tensor) not in trained}
        places = [place - first for t in image.tensors if t.uid in frozen for place in t.ref.places]
        keys = {i: (taking.names[i], Layout.of(taking.live[i])) for i in places}
        new = [i for i in keys if keys[i] not in self._constants]
        suspects = {new[i] for i in nonfinite([taking.live[i] for i in new])}
        for i in new:
            leaf = taking.live[i]
            # A NaN is never equal to itself, so it is never excused.
            legal = i in suspects and is_simple(leaf) and leaf.element_size() > 1
            self._constants[keys[i]] = leaf.clone() if legal else None
        constant: list[Tensor | None] = [None] * len(taking.live)
        for i, key in keys.items():
            constant[i] = self._constants[key]
        return constant


def names_of_nonfinite(
    names: Sequence[str],
    tensors: Sequence[Tensor],
    constant: Sequence[Tensor | None],
    bad: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Names of those of ``tensors`` that are not finite, less those equal to their ``constant``.

    ``bad``: positions of those that are not finite, where they are known already.
    """
    found = []
    for i in nonfinite(tensors) if bad is None else bad:
        legal = constant[i]
        if legal is None or not torch.equal(tensors[i], legal.to(tensors[i].device)):
            found.append(names[i])
    return tuple(found)


def plain_attributes(owner: object) -> dict[str, Any]:
    """Attributes of ``owner`` that are numbers, strings, booleans or None, without those that torch itself sets."""
    simple = (int, float, bool, str, type(None))
    return {k: v for k, v in vars(owner).items() if type(v) in simple and k not in _MODULE_OWN}


def may_set_attribute(name: str, new: Any, live: Any) -> bool:
    """Whether a plain attribute is put back: private flags and strings are a framework's own, numbers are counters."""
    if type(live) not in PLAIN:
        return False
    return not name.startswith("_") or (type(new) in (int, float) and type(live) in (int, float))


def _uid(tensor: Tensor) -> int:
    """A number for ``tensor`` that no other tensor of this process gets, also when this one is gone."""
    uid = _uids.get(tensor)
    if uid is None:
        uid = _uids[tensor] = next(_next_uid)
    return int(uid)


def _all_torch(kind: type) -> bool:
    return all(c.__module__.split(".")[0] in ("torch", "builtins") for c in kind.__mro__)


def _keep_optimizer(i: int, optimizer: Optimizer, keys: dict[int, ParamKey], taking: Taking) -> KeptOptimizer:
    groups, params = [], []
    for j, group in enumerate(optimizer.param_groups):
        params += [keys[id(p)].name for p in group["params"]]
        taken = taking.value(f"optimizer{i}.group{j}", {k: v for k, v in group.items() if k != "params"})
        groups.append(taken)
    state = optimizer.state
    taken = taking.value(f"optimizer{i}.state", state) if isinstance(state, dict) else UNKEPT
    if not isinstance(taken, Mapping_):
        taking.left_out.append(f"optimizer{i}.state is a {type(state).__name__}")
        taken = Mapping_(dict, ())
    return KeptOptimizer(
        type(optimizer).__name__, tuple(params), tuple(groups), taken, plain_attributes(optimizer)
    )


def _keep_helper(name: str, item: Any, taking: Taking) -> Mapping_ | None:
    try:
        taken = taking.value(name, dict(item.state_dict()))
    except Exception as error:  # noqa: BLE001 - a user's scheduler may fail in any way; the step must go on
        taking.left_out.append(f"{name}: its state_dict failed: {type(error).__name__}: {error}")
        return None
    return taken if isinstance(taken, Mapping_) else None
