"""A DataLoader that knows how much of it was used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from steadygrad.schedule.batches import BatchSampler
from steadygrad.schedule.sampler import IndexSampler, mixed_seed


class ResumableLoader:
    """A DataLoader that counts what it handed out, so that a run can go on at the exact sample.

    A loader with workers draws from its sampler ahead of training; after a kill, what was drawn and not
    trained on would be lost. This counts the batches that the loop was given and saves the place of the next.

    Usage::

        loader = ResumableLoader(DataLoader(data, batch_size=32, sampler=ResumableSampler(data), num_workers=4))
        for epoch in range(start_epoch, num_epochs):
            for x, y in loader:
                train(x, y)
                save({"loader": loader.state_dict(), "epoch": epoch, ...})  # after the step

    When to use it: any run that may be stopped, on any sampler of this room.

    Limits: exact means which samples in which order. Random augmentation inside a dataset is repeated only
    if it draws from a generator of its own that depends on the sample; workers have one that depends on
    seed, epoch and place. The DataLoader gets a generator of its own if it has none, so that starting it
    draws nothing from torch's global one and a resumed run's dropout stays in step.

    Values in use: none to choose.

    Cost: none in the loop. Resuming draws the indices of the epoch's beginning again, and loads none of them.

    Args:
        loader: a DataLoader whose ``sampler`` or ``batch_sampler`` is of this room.

    An iteration gives the batches of one epoch, or the rest of one after `load_state_dict`; the rest may be
    empty. A loop that was left early goes on with the next epoch, as with any loader. ``len`` is that of the
    whole epoch. Values, nan or not, are never looked at.

    Example:
        >>> from steadygrad.schedule import ResumableSampler
        >>> def build():
        ...     return ResumableLoader(DataLoader(range(6), batch_size=2, sampler=ResumableSampler(range(6))))
        >>> whole = [batch.tolist() for batch in build()]
        >>> loader = build()
        >>> first = next(iter(loader))
        >>> state, resumed = loader.state_dict(), build()
        >>> resumed.load_state_dict(state)
        >>> [batch.tolist() for batch in resumed] == whole[1:]
        True

    Source: the idea of counting in the loader: torchdata's ``StatefulDataLoader``,
    https://docs.pytorch.org/data/main/torchdata.stateful_dataloader.html
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader):
            raise TypeError(f"loader must be a torch DataLoader, got {type(loader).__name__}")
        self.loader = loader
        self._target, self._per_batch = _target(loader)
        self._handed_out = 0  # batches of the running iteration
        self._over = False  # it gave all that it had
        self._origin: Any = self._target._origin  # where the sampler began it
        if loader.generator is None:
            loader.generator = torch.Generator()
            self._generator: torch.Generator | None = loader.generator
        else:
            self._generator = None

    @property
    def epoch(self) -> int:
        """The epoch that `state_dict` points to: where a resumed loop begins."""
        return self.state_dict()["epoch"]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        left_early = self._handed_out and not self._over and self._target._origin is self._origin
        state = _next_epoch(self.state_dict()) if left_early else self.state_dict()
        self.load_state_dict(state)
        if self._generator is not None:
            self._generator.manual_seed(mixed_seed(_seed(self._target), state["epoch"], state["place"]))
        for batch in self.loader:
            self._handed_out += 1
            yield batch
        self._over = True

    def state_dict(self) -> dict[str, Any]:
        """Where the batch after the last one handed out is to be found. Save it after the step."""
        if self._target._origin is not self._origin:  # set_epoch, or a state loaded, on the sampler itself
            return self._target.state_dict(0)
        consumed = self._handed_out * self._per_batch
        if isinstance(self._target, IndexSampler):
            consumed = min(consumed, self._target._left())  # the last batch may be short
        state = self._target.state_dict(consumed)
        return _next_epoch(state) if self._over else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration at the exact sample; nothing is changed if the state does not fit."""
        self._target.load_state_dict(state)
        self._handed_out, self._over, self._origin = 0, False, self._target._origin


def _target(loader: DataLoader[Any]) -> tuple[IndexSampler | BatchSampler, int]:
    """The sampler that keeps the place, and how many of its units a batch takes."""
    for sampler in (loader.batch_sampler, loader.sampler):
        if isinstance(sampler, BatchSampler):
            return sampler, 1
        if isinstance(sampler, IndexSampler):
            return sampler, loader.batch_size or 1  # None: the dataset makes the batches
    raise TypeError(
        f"the loader's sampler, {type(loader.sampler).__name__}, cannot be resumed: give it sampler=ResumableSampler"
        "(dataset), a curriculum sampler, or batch_sampler=RampedBatchSampler(...)"
    )


def _seed(target: IndexSampler | BatchSampler) -> int:
    return target.seed if isinstance(target, IndexSampler) else target.sampler.seed


def _next_epoch(state: dict[str, Any]) -> dict[str, Any]:
    start = {"epoch": state["epoch"] + 1, "place": 0}
    return {**state, **start, "batch": 0} if "batch" in state else {**state, **start}
