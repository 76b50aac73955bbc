"""A shuffling sampler that can go on at the exact sample; and what all samplers here share.

An order that can be resumed is a pure function of seed, epoch and place, never of what a generator has been
through. A sampler in a DataLoader with workers runs ahead of training, so it cannot know how much was trained on:
the loop says so, or `ResumableLoader` counts for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import torch.distributed
from torch.utils.data import DistributedSampler, Sampler

from steadygrad import _check


def mixed_seed(*numbers: int) -> int:
    """A seed of 63 bits; neighbours share nothing, as they would under seed + epoch."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def replicas(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """The arguments, or what torch.distributed says, or one replica."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_replicas is None:
        num_replicas = torch.distributed.get_world_size() if running else 1
    if rank is None:
        rank = torch.distributed.get_rank() if running else 0
    _check.count("num_replicas", num_replicas, 1)
    _check.count("rank", rank, 0)
    if rank >= num_replicas:
        raise ValueError(f"rank must be below num_replicas = {num_replicas}, got {rank}")
    return num_replicas, rank


def check_same(owner: str, state: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """The settings that the order depends on are what they were."""
    for name, value in mine.items():
        if state[name] != value:
            raise ValueError(
                f"{owner} has {name} = {value}, the state was saved with {state[name]}: the exact sample can "
                "only be found with the same settings; build it as it was, or start an epoch with set_epoch"
            )


class IndexSampler(Sampler[int]):
    """What the samplers of single indices share: a place in an epoch, kept and found again."""

    def __init__(self, num_data: int, seed: int, num_replicas: int | None, rank: int | None) -> None:
        self.num_data = num_data
        self.seed = _check.count("seed", seed, 0)
        self.num_replicas, self.rank = replicas(num_replicas, rank)
        self._next = (0, 0)  # epoch and place at which the next iteration begins
        self._origin = (0, 0)  # where the running one began

    def _epoch_length(self, epoch: int) -> int:
        """Indices of this rank in an epoch."""
        raise NotImplementedError

    def _draw(self, epoch: int, place: int) -> Iterator[int]:
        """The indices of this rank from a place on."""
        raise NotImplementedError

    def _begin(self, place: int) -> None:
        """Called when an iteration begins."""

    def __iter__(self) -> Iterator[int]:
        # a generator, which begins at its first index: a DataLoader with workers calls iter() twice
        epoch, place = self._origin = self._next
        self._next = (epoch + 1, 0)
        self._begin(place)
        yield from self._draw(epoch, place)

    def __len__(self) -> int:
        """Indices of this rank in the whole of the running epoch, or of the first one before it begins."""
        return self._epoch_length(self._origin[0])

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration at this epoch; at its start, unless it is the one just loaded.

        Not needed: every iteration takes the next epoch by itself.
        """
        if _check.count("epoch", epoch, 0) != self._next[0]:
            self._next = self._origin = (epoch, 0)

    def _settings(self) -> dict[str, Any]:
        """What the order depends on, beside epoch and place."""
        return {"seed": self.seed, "num_data": self.num_data, "num_replicas": self.num_replicas}

    def _load_settings(self, settings: Mapping[str, Any]) -> None:
        check_same(type(self).__name__, settings, self._settings())

    def _left(self) -> int:
        """Indices of the running iteration when it began."""
        return max(0, self._epoch_length(self._origin[0]) - self._origin[1])

    def state_dict(self, num_consumed: int) -> dict[str, Any]:
        """The state after the loop has trained on so many samples of the last iteration that was begun.

        Args:
            num_consumed: samples of this rank, counted by the loop since the iteration began; the sampler
                itself is ahead by what the workers have prefetched. `ResumableLoader` counts for you.
        """
        left = self._left()
        if _check.count("num_consumed", num_consumed, 0) > left:
            raise ValueError(
                f"num_consumed must be at most the {left} samples of this iteration, got {num_consumed}"
            )
        epoch, place = self._origin
        return {"epoch": epoch, "place": place + num_consumed, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration at the exact sample; nothing is changed if the state does not fit."""
        wanted = {"epoch", "place", *self._settings()}
        if set(state) != wanted:
            raise ValueError(f"the state of {type(self).__name__} has {sorted(wanted)}, got {sorted(state)}")
        epoch, place = _check.count("epoch", state["epoch"], 0), _check.count("place", state["place"], 0)
        self._load_settings(state)
        self._next = self._origin = (epoch, place)


class ResumableSampler(IndexSampler):
    """``DistributedSampler`` that goes on in the middle of an epoch: the same indices, for one process too.

        indices of rank r in epoch e = (permutation from seed + e)[r::R]

    When to use it: plain shuffling, on one process or many, of a run that must be resumed exactly; under
    `RampedBatchSampler` and `LengthSampler`. Without resuming, torch's samplers do.

    Limits: exact means the indices. Random augmentation in workers has its own generators, which nothing
    here saves. The first indices of an epoch are drawn again and thrown away when resuming: 0.1 s per
    million.

    Values in use: seed 0, as torch.

    Cost: that of a permutation each epoch.

    Args:
        data_source: the dataset, or anything with a length.
        shuffle: False for the order as it is.
        seed: at least 0, the same on all ranks.
        drop_last: with several ranks, leave out the odd samples instead of repeating some.
        num_replicas: R; None asks torch.distributed, and is 1 without it.
        rank: r; None asks torch.distributed, and is 0 without it.

    An iteration gives the indices of one epoch and moves on to the next. An empty dataset gives none. The
    values of the data, nan or not, are never looked at.

    Example:
        >>> sampler = ResumableSampler(range(6))
        >>> epoch = list(sampler)
        >>> again = ResumableSampler(range(6))
        >>> begun = iter(again)
        >>> first = [next(begun), next(begun), next(begun)]  # drawn ahead by one
        >>> state = again.state_dict(num_consumed=2)
        >>> again.load_state_dict(state)
        >>> list(again) == epoch[2:]
        True

    Source: torch's ``DistributedSampler``, https://docs.pytorch.org/docs/stable/data.html
    """

    def __init__(
        self,
        data_source: Sized,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(len(data_source), seed, num_replicas, rank)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._torch: DistributedSampler[int] = DistributedSampler(
            range(self.num_data),  # type: ignore[arg-type]
            self.num_replicas,
            self.rank,
            shuffle,
            seed,
            drop_last,
        )

    def _epoch_length(self, epoch: int) -> int:
        return len(self._torch)

    def _draw(self, epoch: int, place: int) -> Iterator[int]:
        self._torch.set_epoch(epoch)
        return islice(iter(self._torch), place, None)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "shuffle": self.shuffle, "drop_last": self.drop_last}
