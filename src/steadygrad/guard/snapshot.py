"""A copy of a run's state in memory, in buffers that are used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steadygrad._foreach import copy_grouped_, nonfinite
from steadygrad.guard.aside import AsideCopies
from steadygrad.guard.blockwise import copy_checked_
from steadygrad.guard.image import Image, Restored
from steadygrad.guard.image import RestoreError as RestoreError
from steadygrad.guard.preparation import Preparation
from steadygrad.guard.restore import misfit, put_back
from steadygrad.guard.rng import rng_state, set_rng_state
from steadygrad.guard.state import Capture, TrainingState, names_of_nonfinite
from steadygrad.guard.tensors import buffer_for, is_simple, num_bytes, plainly, serves


@dataclass(frozen=True, slots=True)
class Frozen:
    """A finished snapshot to read from another thread; it must be held (``holders``) meanwhile."""

    step: int
    image: Image
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    rng: dict[str, Any]
    left_out: tuple[str, ...]
    nonfinite_names: tuple[str, ...]


class Snapshot:
    """The values of a :class:`TrainingState` at one step.

    The first :meth:`take` allocates, later ones use the same memory as long as the tensors keep their shapes.
    Copies lie on the CPU, pinned for tensors of a GPU. Taking costs one pass over the memory and no random number.
    Memory that was never written to costs several times as much at first: :meth:`prepare` sees to that beforehand.

    What cannot be copied is listed in :attr:`left_out` and does no harm: tensors without values (meta, lazy),
    subclasses that cannot be taken apart, and objects such as generators or open files, which are kept by
    reference.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> state = TrainingState([model], [torch.optim.SGD(model.parameters(), lr=0.1)])
        >>> snapshot = Snapshot()
        >>> snapshot.take(state, step=0)
        >>> before = model.weight.detach().clone()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> _ = snapshot.restore(state, rng=False)
        >>> torch.equal(model.weight, before)
        True
    """

    def __init__(self) -> None:
        self.step: int | None = None  # None: holds nothing
        self.left_out: tuple[str, ...] = ()
        self.image = Image()
        self.names: list[str] = []  # of the copies
        self.rng: dict[str, Any] = {}
        self.holders: set[object] = set()  # who still reads it; the ring uses it again when nobody does
        self._saved: list[Tensor] = []
        self._constant: list[Tensor | None] = []
        self._nonfinite: tuple[str, ...] | None = None
        self._aside = AsideCopies()
        self._preparation: Preparation | None = None

    # ------------------------------------------------------------------ taking
    def missing_bytes(self, capture: Capture) -> int:
        """Bytes of new memory that a take of ``capture`` would ask for now."""
        if self._preparation is not None and self._preparation.done:
            self._take_over()
        return sum(map(num_bytes, self._missing(capture).values()))

    def prepare(self, capture: Capture) -> None:
        """Drop what is held, and begin to make the memory ready that a take of ``capture`` needs.

        Raises:
            RuntimeError: no thread can be started for it.
        """
        self.drop()
        self._take_over()
        of = dict(zip(capture.names, capture.live, strict=True))
        kept = [(n, t) for n, t in zip(self.names, self._saved, strict=True) if n in of and serves(t, of[n])]
        self.names, self._saved = [n for n, _ in kept], [t for _, t in kept]
        self._preparation = Preparation(self._missing(capture))

    @property
    def preparing(self) -> bool:
        """Whether memory is being made ready at this moment; a take would wait for it."""
        return self._preparation is not None and not self._preparation.done

    def _missing(self, capture: Capture) -> dict[str, Tensor]:
        spare = dict(zip(self.names, self._saved, strict=True))
        return {
            name: leaf
            for name, leaf in zip(capture.names, capture.live, strict=True)
            if is_simple(leaf) and not (name in spare and serves(spare[name], leaf))
        }

    def _take_over(self) -> None:
        """The memory that was made ready becomes the snapshot's own, in place of what it has of the same name."""
        if self._preparation is not None:
            spare = {**dict(zip(self.names, self._saved, strict=True)), **self._preparation.buffers()}
            self.names, self._saved = list(spare), list(spare.values())
            self._preparation = None

    def take(
        self, state: TrainingState, step: int, capture: Capture | None = None, *, finite: bool = False
    ) -> None:
        """Copy everything, and look in the same pass whether it is finite; what was held before is overwritten.

        Args:
            state: the live run.
            step: the name of this moment: how many steps had been taken.
            capture: of this very moment, if the caller has made one already.
            finite: the caller has found the capture to be finite, so it need not be looked at again.

        Raises:
            MemoryError, RuntimeError: there is no memory for it. The snapshot holds nothing then.
        """
        self.drop()
        self._take_over()
        capture = capture or state.capture()
        spare = dict(zip(self.names, self._saved, strict=True))
        self.names, self._saved = [], []
        with plainly():
            pairs = zip(capture.names, capture.live, strict=True)
            saved = [buffer_for(leaf, spare.pop(name, None)) for name, leaf in pairs]
            bad = self._copy(capture.live, saved, check=not finite)
            self._nonfinite = names_of_nonfinite(capture.names, capture.live, capture.constant, bad)
        self.names, self._saved = list(capture.names), saved
        self._constant = capture.constant
        self.image, self.left_out = capture.image, capture.left_out
        self.rng = rng_state()
        self.step = step

    def hold(self, step: int, image: Image, tensors: Sequence[Tensor], rng: dict[str, Any]) -> None:
        """Hold what was read from elsewhere, where it was finite. The tensors are copied.

        Args:
            step: of the moment when it was taken.
            image: whose things are found again by name.
            tensors: of its places.
            rng: the random number generators of that moment.
        """
        self.drop()
        of = {place: t.name for t in image.tensors for place in t.ref.places}
        self.names = [of.get(i, f"tensor{i}") for i in range(len(tensors))]
        with plainly():
            self._saved = [t.detach().cpu().clone() for t in tensors]
        self._constant, self._nonfinite = [None] * len(tensors), ()
        self.image, self.rng, self.step = image, rng, step

    def amend(self, state: TrainingState) -> None:
        """Take in what joined the run after this snapshot was taken, with its present values."""
        if self.step is None:
            return
        capture = state.capture(known=self.image, first=len(self._saved))
        with plainly():
            fresh = [buffer_for(leaf) for leaf in capture.live]
            self._copy(capture.live, fresh, check=False)
        self._saved += fresh
        self.names += capture.names
        self._constant = [*self._constant, *capture.constant]
        self.image.add(capture.image)
        self.left_out += tuple(x for x in capture.left_out if x not in self.left_out)
        self._nonfinite = None

    def _copy(self, live: list[Tensor], kept: list[Tensor], *, check: bool) -> list[int]:
        """Positions of what is not finite among ``live``, if it is asked for."""
        simple = [i for i, leaf in enumerate(live) if is_simple(leaf)]  # the others are clones
        here = [i for i in simple if live[i].device.type == "cpu"]
        away = [
            i for i in simple if live[i].device.type == "cuda"
        ]  # only there we know how to wait for copies
        elsewhere = sorted({*simple}.difference(here, away))
        bad = []
        if check:
            bad = [here[i] for i in copy_checked_([kept[i] for i in here], [live[i] for i in here])]
            others = sorted({*range(len(live))}.difference(here))
            bad += [others[i] for i in nonfinite([live[i] for i in others])]
        else:
            elsewhere += here
        copy_grouped_([kept[i] for i in elsewhere], [live[i] for i in elsewhere])
        self._aside.copy_([kept[i] for i in away], [live[i] for i in away])
        return sorted(bad)

    def drop(self) -> None:
        """Hold nothing. The memory stays, for the next take."""
        self._aside.wait()
        self.step = None
        self.image = Image()
        self._nonfinite = None

    # ------------------------------------------------------------------ reading
    def tensors(self) -> list[Tensor]:
        """The copies, in the order of :attr:`names`, complete. Not to be changed."""
        self._aside.wait()
        return self._saved

    def freeze(self) -> Frozen:
        """The snapshot as it is now, its copies shared.

        Raises:
            ValueError: it holds nothing.
        """
        if self.step is None:
            raise ValueError("the snapshot holds nothing: call take first")
        bad = self.nonfinite_names()
        image = Image()
        image.add(self.image)  # lists of its own: this snapshot may be amended later
        names, tensors = tuple(self.names), tuple(self.tensors())
        return Frozen(self.step, image, names, tensors, dict(self.rng), self.left_out, bad)

    def nonfinite_names(self) -> tuple[str, ...]:
        """Names of the copies that hold a NaN or an infinity; see :meth:`TrainingState.nonfinite_names`."""
        if self._nonfinite is None:
            with plainly():
                self._nonfinite = names_of_nonfinite(self.names, self.tensors(), self._constant)
        return self._nonfinite

    def is_finite(self) -> bool:
        """Whether every floating and complex tensor is finite: parameters, buffers, optimizer state."""
        return not self.nonfinite_names()

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the copies take, those included that are being made ready."""
        preparing = 0 if self._preparation is None else self._preparation.num_bytes
        return sum(map(num_bytes, self._saved)) + preparing

    # ------------------------------------------------------------------ going back
    def misfit(self, state: TrainingState) -> str | None:
        """Why the snapshot cannot be put back into the run as it is now, or None if it can."""
        return misfit(state, self.image, self._saved)

    def restore(self, state: TrainingState, *, rng: bool) -> Restored:
        """Put everything back in place: every tensor keeps its identity and its address.

        Optimizer state that was born later goes; groups keep their dicts and get their hyperparameters back;
        gradients are left alone.

        Args:
            state: the live run that the snapshot was taken of.
            rng: the random number generators as well (the same dropout again; data loaders follow them too).

        Returns:
            What could not be put back; empty if the run has only trained in between.

        Raises:
            RestoreError: a tensor has another shape or dtype now; nothing was changed.
            ValueError: the snapshot holds nothing.
        """
        if self.step is None:
            raise ValueError("the snapshot holds nothing: call take first")
        restored = put_back(state, self.image, self.tensors())
        if rng:
            set_rng_state(self.rng)
        return restored
