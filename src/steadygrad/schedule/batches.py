"""Batches whose size may grow, over any sampler of this room, resumable at the exact batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import Sampler

from steadygrad import _check
from steadygrad.schedule.sampler import IndexSampler, check_same


class Cursor(NamedTuple):
    """Where a batch begins."""

    epoch: int = 0
    place: int = 0  # samples of this rank in the epoch so far
    batch: int = 0  # batches in the epoch so far
    step: int = 0  # batches in the run so far
    samples: int = 0  # samples of all ranks in the run so far


class BatchSampler(Sampler[list[int]]):
    """What the samplers of batches share: a cursor, kept and found again."""

    sampler: IndexSampler
    _origin: Cursor  # where the running iteration began
    _next: Cursor  # where the next one will begin

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at this epoch, steps and samples counting on; not needed.

        It starts at the beginning of the epoch, unless it is the one just loaded.
        """
        if _check.count("epoch", epoch, 0) != self._next.epoch:
            self._next = self._origin = self._next._replace(epoch=epoch, place=0, batch=0)

    def _take(self, at: Cursor) -> tuple[int, Cursor] | None:
        """Samples of this rank in the batch at a cursor, and the cursor after it; None at the epoch's end."""
        raise NotImplementedError

    def state_dict(self, num_consumed: int) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


class RampedBatchSampler(BatchSampler):
    """Batches over a sampler, of a size that is fixed or grows with the run; resumable at the exact batch.

        B = batch_size(samples of all ranks so far), or of the steps so far; each rank takes B / R

    When to use it: a batch-size ramp; or, with a number for ``batch_size``, in place of torch's
    ``BatchSampler`` under `LengthSampler`. For what a growing batch does to the learning rate see
    `linear_batch_size`.

    Limits: samples that ``drop_last`` leaves out are not counted as seen.

    Values in use: see `linear_batch_size`, `stepwise_batch_size`, `milestone_batch_size`.

    Cost: a few operations on single numbers for each batch; a checkpoint counts through the batches since
    the last one.

    Args:
        sampler: one of this room: `ResumableSampler`, `CurriculumSampler`, `EpochCurriculumSampler`.
        batch_size: over all ranks, a multiple of their number: a number, or a function of the samples seen.
        drop_last: leave out the last batch of an epoch if it is short.
        by_step: call ``batch_size`` with the steps so far, not the samples.

    An iteration gives the batches of one epoch. A size below 1, no multiple of the ranks or no whole number
    raises ValueError or TypeError at the batch. An empty dataset gives no batch. The values of the data, nan
    or not, are never looked at.

    Example:
        >>> from functools import partial
        >>> from steadygrad.schedule import ResumableSampler, milestone_batch_size
        >>> order = ResumableSampler(range(10), shuffle=False)
        >>> list(RampedBatchSampler(order, partial(milestone_batch_size, sizes={0: 2, 4: 4})))
        [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9]]

    Source: Brown et al. (2020), appendix B, https://arxiv.org/abs/2005.14165
    """

    def __init__(
        self,
        sampler: IndexSampler,
        batch_size: int | Callable[[int], int],
        drop_last: bool = False,
        by_step: bool = False,
    ) -> None:
        if not isinstance(sampler, IndexSampler):
            raise TypeError(
                f"sampler must be one that can be resumed, got {type(sampler).__name__}: use ResumableSampler"
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.by_step = by_step
        self._next = self._origin = Cursor()
        self._known = (0, self._origin)  # so many batches after the origin the cursor is there
        if not callable(batch_size):
            self._share(batch_size)

    def _share(self, batch_size: int) -> int:
        """Samples of this rank in a batch."""
        ranks = self.sampler.num_replicas
        if _check.count("batch_size", batch_size, 1) % ranks:
            raise ValueError(f"batch_size must be a multiple of num_replicas = {ranks}, got {batch_size}")
        return batch_size // ranks

    def _take(self, at: Cursor) -> tuple[int, Cursor] | None:
        size = self.batch_size
        wanted = self._share(size(at.step if self.by_step else at.samples) if callable(size) else size)
        left = self.sampler._epoch_length(at.epoch) - at.place
        if left <= 0 or (left < wanted and self.drop_last):
            return None
        n = min(wanted, left)
        seen = at.samples + n * self.sampler.num_replicas
        return n, Cursor(at.epoch, at.place + n, at.batch + 1, at.step + 1, seen)

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """The step of each batch, and the batch."""
        # a generator, which begins at its first batch: a DataLoader with workers calls iter() twice
        at = self._origin = self._next
        self._known = (0, at)
        self._next = at._replace(epoch=at.epoch + 1, place=0, batch=0)
        self.sampler._begin(at.place)
        indices = self.sampler._draw(at.epoch, at.place)
        while (taken := self._take(at)) is not None:
            n, after = taken
            # a loop that stops here and starts the loader anew goes on with the next epoch
            self._next = after._replace(epoch=after.epoch + 1, place=0, batch=0)
            yield at.step, list(islice(indices, n))
            at = after

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for _, batch in self._batches())

    def __len__(self) -> int:
        """Batches in the whole of the running epoch, or of the first one before it begins."""
        at = self._origin
        while (taken := self._take(at)) is not None:
            at = taken[1]
        return at.batch

    def state_dict(self, num_consumed: int) -> dict[str, Any]:
        """The state after the loop has trained on so many batches of the last iteration that was begun.

        Args:
            num_consumed: batches, counted by the loop since the iteration began; the sampler itself is ahead
                by what the workers have prefetched. `ResumableLoader` counts for you.
        """
        known, at = self._known
        if _check.count("num_consumed", num_consumed, 0) < known:
            known, at = 0, self._origin
        for i in range(known, num_consumed):
            taken = self._take(at)
            if taken is None:
                raise ValueError(
                    f"num_consumed must be at most the {i} batches of this iteration, got {num_consumed}"
                )
            at = taken[1]
        self._known = (num_consumed, at)
        return {**at._asdict(), **self._settings(), "sampler": self.sampler._settings()}

    def _settings(self) -> dict[str, Any]:
        mine: dict[str, Any] = {"drop_last": self.drop_last, "by_step": self.by_step}
        return mine if callable(self.batch_size) else {**mine, "batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration at the exact batch; nothing is changed if the state does not fit.

        A function for the batch size is not in the state: give the same one.
        """
        settings = self._settings()
        wanted = {*Cursor._fields, *settings, "sampler"}
        if set(state) != wanted:
            raise ValueError(f"the state of {type(self).__name__} has {sorted(wanted)}, got {sorted(state)}")
        at = Cursor(*(_check.count(name, state[name], 0) for name in Cursor._fields))
        check_same(type(self).__name__, state, settings)
        self.sampler._load_settings(state["sampler"])
        self._next = self._origin = at
        self._known = (0, at)
