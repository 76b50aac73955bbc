"""What a skipped step must leave no trace in: the buffers of modules, and an optimizer that steps by closures."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from steadygrad._foreach import copy_grouped_, nonfinite
from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import TrainingState
from steadygrad.guard.tensors import is_simple, leaves, memory_key, plainly
from steadygrad.probe.host import near
from steadygrad.probe.norms import plain_values
from steadygrad.probe.reductions import Posted, Readings

Table = dict[str, Tensor | None]  # the `_buffers` of one module


class BufferKeeper:
    """Keeps a copy of all buffers as they were after the last good step, and puts it back when a step is skipped.

    A forward pass on a bad batch has already written NaN into BatchNorm's running statistics when the step is
    skipped. All dtypes are kept, counts too. Copies lie beside their buffers, on the same device; keeping costs
    a grouped copy and a walk over the modules that looks at identities only.

    Args:
        modules: roots; the sequence is looked at anew each time, so that it may grow.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> keeper = BufferKeeper([norm])
        >>> _ = norm(torch.tensor([[float("nan")], [1.0]]))
        >>> keeper.restore()
        >>> norm.running_mean.item(), norm.num_batches_tracked.item()
        (0.0, 0)
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._tables: list[Table] = []  # of every module
        self._children: list[dict[str, nn.Module | None]] = []
        self._seen_roots: list[nn.Module] = []
        self._seen_children: list[nn.Module | None] = []
        self._seen_buffers: list[Tensor | None] = []
        self._kept: list[tuple[Table, str, Tensor | None]] = []  # where each buffer belongs
        self._homes: list[tuple[Tensor, Tensor, int]] = []  # a buffer, the view of its memory, its address
        self._unborn: list[Tensor] = []  # lazy buffers, which get their memory under their old identity
        self._live: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._far = False  # whether the host would have to wait for one of them
        self._posted: Posted | None = None  # their norms, on their way
        self.keep()

    def keep(self) -> None:
        """Copy the buffers as they are now. To be called at the start and after each step that was taken."""
        if self._changed():
            with plainly():
                self._look()
        if self._live:
            with plainly():
                copy_grouped_(self._copies, self._live)

    def restore(self) -> None:
        """Make the buffers what they were at the last :meth:`keep`: values and, where they were replaced, identity.

        Buffers that did not exist then are left alone.
        """
        with plainly():
            for table, name, buffer in self._kept:
                if name in table and table[name] is not buffer:
                    table[name] = buffer
            for buffer, memory, address in self._homes:
                if buffer.data_ptr() != address:
                    buffer.data = memory  # `buffer.data = ...` in the skipped step gave it other memory
            copy_grouped_(self._live, self._copies)

    def look(self) -> None:
        """Send word of the buffers ahead of :meth:`poisoned`, so that it finds it there; only from a far device."""
        if not self._far:
            return
        with plainly():
            readings = Readings()
            readings.add_norms("norm", {i: plain_values(t) for i, t in enumerate(self._live) if _has_norm(t)})
            self._posted = readings.post()

    def poisoned(self) -> list[str]:
        """Names of the buffers that have become NaN since the last :meth:`keep`, as ``Class.name`` of their module.

        Infinities are left alone: a running minimum begins with one.
        """
        if not self._live:
            return []
        if self._far:
            if self._posted is None:
                self.look()
            posted, self._posted = self._posted, None
            if posted is not None and _all_finite(posted):
                return []
        with plainly():
            bad = nonfinite(self._live)
            nans = {i for i in bad if _has_nan(self._live[i]) and not _has_nan(self._copies[i])}
            return self._names(nans)

    def _names(self, nans: set[int]) -> list[str]:
        """What the buffers at these places are called."""
        if not nans:
            return []
        owners = {id(m._buffers): type(m).__name__ for root in self._modules for m in root.modules()}
        suspects = {self._live[i].data_ptr() for i in nans}
        return [
            f"{owners.get(id(table), '')}.{name}"
            for table, name, buffer in self._kept
            if buffer is not None and any(leaf.data_ptr() in suspects for leaf in _leaves(buffer))
        ]

    # ------------------------------------------------------------------ decided on a device
    def all_on(self, device: torch.device) -> bool:
        """Whether all of them lie on this device as plain values, and none has been replaced since the last step."""
        return not self._changed() and all(
            live.device == device
            and not live.is_inference()
            and not (live.is_floating_point() and live.element_size() == 1)
            for live in self._live
        )

    def became_nan(self) -> list[Tensor]:
        """For each floating buffer, 0-D on its device: whether it has become NaN since the last :meth:`keep`."""
        with plainly():
            flags: list[Tensor] = []
            for places in self._floating().values():
                now = torch.stack(torch._foreach_norm([self._live[i] for i in places]))
                then = torch.stack(torch._foreach_norm([self._copies[i] for i in places]))
                flags += (now.isnan() & ~then.isnan()).unbind()
            return flags

    def names_of(self, became_nan: Sequence[float]) -> list[str]:
        """The names that :meth:`poisoned` gives, from what :meth:`became_nan` has come to on the host."""
        places = [i for group in self._floating().values() for i in group]
        with plainly():
            return self._names({i for i, nan in zip(places, became_nan, strict=True) if nan})

    def keep_unless(self, skipped: Tensor) -> None:
        """:meth:`restore` where the 0-D flag ``skipped`` is true, else :meth:`keep`; on the device, without a wait.

        The buffers' version counters stay: what a graph has saved of them is still good if the step was taken.
        """
        groups: dict[torch.dtype, list[int]] = defaultdict(list)
        for i, buffer in enumerate(self._live):
            groups[buffer.dtype].append(i)
        with plainly(), torch.autograd._unsafe_preserve_version_counter(tuple(self._live)):
            for places in groups.values():
                live, copies = [self._live[i] for i in places], [self._copies[i] for i in places]
                now, then = (torch.cat([t.reshape(-1) for t in ts]) for ts in (live, copies))
                flat = torch.where(skipped, then, now).split([t.numel() for t in live])
                right = [values.view(t.shape) for values, t in zip(flat, live, strict=True)]
                copy_grouped_(copies, right)
                copy_grouped_(live, right)

    @contextmanager
    def as_kept(self) -> Iterator[None]:
        """Inside the block the buffers hold what they held after the last step, whatever a forward pass did since."""
        with plainly():
            now = [live.clone() for live in self._live]
            copy_grouped_(self._live, self._copies)
        try:
            yield
        finally:
            with plainly():
                copy_grouped_(self._live, now)

    def _floating(self) -> dict[torch.dtype, list[int]]:
        """Places of the buffers that can be NaN, by dtype."""
        groups: dict[torch.dtype, list[int]] = defaultdict(list)
        for i, live in enumerate(self._live):
            if live.is_floating_point() and live.numel():
                groups[live.dtype].append(i)
        return groups

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the copies take."""
        return sum(t.numel() * t.element_size() for t in self._copies)

    def _changed(self) -> bool:
        """Whether a module or a buffer was added, removed, replaced or moved. Looks at identities and addresses."""
        return not (
            _same(self._seen_roots, self._modules)
            and _same(self._seen_children, [m for table in self._children for m in table.values()])
            and _same(self._seen_buffers, [b for table in self._tables for b in table.values()])
            and not (self._homes and self._moved())
            and all(map(is_lazy, self._unborn))
        )

    def _moved(self) -> bool:
        with plainly():
            return any(buffer.data_ptr() != address for buffer, _, address in self._homes)

    def _look(self) -> None:
        modules = list({id(m): m for root in self._modules for m in root.modules()}.values())
        self._tables = [m._buffers for m in modules]
        self._children = [m._modules for m in modules]
        self._seen_roots = list(self._modules)
        self._seen_children = [m for table in self._children for m in table.values()]
        self._seen_buffers = [b for table in self._tables for b in table.values()]
        self._kept = [(table, name, b) for table in self._tables for name, b in table.items()]
        old = {memory_key(live): copy for live, copy in zip(self._live, self._copies, strict=True)}
        found: dict[tuple[object, ...], Tensor] = {}
        self._homes, self._unborn = [], []
        for buffer in {id(b): b for b in self._seen_buffers if b is not None}.values():
            parts = _leaves(buffer)
            if is_lazy(buffer):
                self._unborn.append(buffer)
            elif [p.shape for p in parts] == [buffer.shape] and is_simple(parts[0]):
                self._homes.append((buffer, parts[0], buffer.data_ptr()))
            found.update((memory_key(leaf), leaf) for leaf in parts if is_simple(leaf))
        self._live = list(found.values())
        self._copies = [old[key] if key in old else leaf.clone() for key, leaf in found.items()]
        self._far = not all([near(live) for live in self._live])


def _leaves(buffer: Tensor) -> list[Tensor]:
    try:
        return [leaf for _, leaf in leaves(buffer)]
    except Exception:  # noqa: BLE001 - no values yet, or a subclass that cannot be taken apart: nothing to keep
        return []


def _has_norm(leaf: Tensor) -> bool:
    return (leaf.is_floating_point() or leaf.is_complex()) and leaf.numel() > 0


def _all_finite(posted: Posted) -> bool:
    return all(map(math.isfinite, posted.numbers()["norm"].values()))  # host sync


def _has_nan(leaf: Tensor) -> bool:
    return leaf.is_floating_point() and bool(leaf.isnan().any())


def _same(a: Sequence[object], b: Sequence[object]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


class StepKeeper:
    """Undoes one step of an optimizer that evaluates its closure several times (LBFGS).

    A NaN in the second evaluation is seen only when the first has already moved the parameters. So everything
    that this optimizer changes is copied before its step, and put back if the step ended badly.

    Args:
        optimizer: the optimizer, its parameters and its state are kept; nothing else.

    Example:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> optimizer = torch.optim.LBFGS([w])
        >>> keeper = StepKeeper(optimizer)
        >>> keeper.keep()
        >>> _ = optimizer.step(lambda: (w * float("nan")).sum().backward() or torch.tensor(1.0))
        >>> keeper.is_finite(), keeper.restore(), w.tolist()
        (False, None, [1.0, 1.0])
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._state = TrainingState((), [optimizer])
        self._snapshot = Snapshot()

    def keep(self) -> None:
        """Copy parameters and state as they are now."""
        self._snapshot.take(self._state, 0)

    def is_finite(self) -> bool:
        """Whether parameters and state are finite now."""
        return not self._state.nonfinite_names()

    def restore(self) -> None:
        """Make parameters and state what they were at the last :meth:`keep`."""
        self._snapshot.restore(self._state, rng=False)
