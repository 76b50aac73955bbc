"""Sequence-length warm-up: short sequences first, the length of each batch fixed when its indices are drawn.

With workers that prefetch, a batch is collated long before its step, in another process, so that no counter there
knows which step it is for. Here the length travels with the batch: on its indices to the worker, beside
its samples to the collate function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, default_collate

from steadygrad import _check
from steadygrad.schedule.batches import BatchSampler, Cursor, RampedBatchSampler
from steadygrad.schedule.cut import Dims, fold, owned, truncate


def sequence_length(share: float, min_length: int, max_length: int, multiple_of: int = 8) -> int:
    """The length of the sequences when a share of the way is done.

        L = L_0 + (L_1 - L_0) c, less its remainder by m; L_1 itself at c = 1

    When to use it: with a pacing, as the ``length`` of `LengthSampler`:
    ``lambda step: sequence_length(linear_pacing(step, 20_000, start=0.0), 64, 1024)``.

    Values in use: L_0 = 8 (GPT-2 117M) or 64 (1.5B) of 1024, m = 8 for tensor cores (Li et al.).

    Cost: a few operations on single numbers.

    Args:
        share: c, 0 to 1.
        min_length: L_0, tokens, at least 1.
        max_length: L_1, tokens, at least L_0.
        multiple_of: m, at least 1; a length is never less than L_0 for it.

    Returns tokens. A nan share raises ValueError.

    Example:
        >>> [sequence_length(c, 8, 100) for c in (0.0, 0.5, 0.99, 1.0)]
        [8, 48, 96, 100]

    Source: Li et al. (2022), the Sequence Length Warmup method, https://arxiv.org/abs/2108.06084
    """
    _check.fraction("share", share)
    _check.count("min_length", min_length, 1)
    _check.count("max_length", max_length, min_length, f": it must not be below min_length = {min_length}")
    _check.count("multiple_of", multiple_of, 1)
    if share == 1:
        return max_length
    grown = int(min_length + (max_length - min_length) * share)
    return max(min_length, grown - grown % multiple_of)


class _Index(int):
    """An index that knows the sequence length of its batch; to everybody else it is a number."""

    length: int

    def __new__(cls, value: int, length: int) -> _Index:
        self = super().__new__(cls, value)
        self.length = length
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Index, (int(self), self.length)  # on its way to a worker


class _Sample(NamedTuple):
    """A sample and the sequence length of its batch."""

    value: Any
    length: int


class LengthSampler(BatchSampler):
    """Batches of indices that carry the sequence length of their step; one of a pair with a collate function.

        the batch of step t is cut to length(t)

    Usage::

        order = ResumableSampler(dataset)
        batches = LengthSampler(RampedBatchSampler(order, 32), length)
        loader = DataLoader(
            WithLength(dataset), batch_sampler=batches, collate_fn=TruncateCollate(), num_workers=4
        )

    When to use it: language models at large batch and rate: long sequences early are what makes the gradient's
    variance explode. Not together with a batch-size ramp: both cut the tokens of a step.

    Limits: the first steps see fewer tokens, so that a schedule in steps should become one in tokens. Shapes
    change: a compiled model recompiles at each new length; few, coarse lengths help.

    Values in use: linear from 8 or 64 tokens over some ten thousand steps (Li et al.).

    Cost: none beside what the cut saves.

    Args:
        batches: a `RampedBatchSampler`.
        length: step -> tokens, at least 1; see `sequence_length`.

    An epoch is that of ``batches``, and so is the state. A length below 1 or no whole number raises at the
    batch. The values of the data, nan or not, are never looked at.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from steadygrad.schedule import RampedBatchSampler, ResumableSampler
        >>> data = TensorDataset(torch.zeros(6, 16), torch.zeros(6))
        >>> batches = LengthSampler(RampedBatchSampler(ResumableSampler(data), 2), lambda step: 4 + 4 * step)
        >>> loader = DataLoader(WithLength(data), batch_sampler=batches, collate_fn=TruncateCollate())
        >>> [tuple(x.shape) for x, y in loader]
        [(2, 4), (2, 8), (2, 12)]

    Source: Li et al. (2022), the Sequence Length Warmup method, https://arxiv.org/abs/2108.06084
    """

    def __init__(self, batches: RampedBatchSampler, length: Callable[[int], int]) -> None:
        if not isinstance(batches, RampedBatchSampler):
            raise TypeError(f"batches must be a RampedBatchSampler, got {type(batches).__name__}")
        if not callable(length):
            raise TypeError(f"length is a function of the step, got {type(length).__name__}: {length!r}")
        self.batches = batches
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        return (self._tagged(step, batch) for step, batch in self.batches._batches())

    def _tagged(self, step: int, batch: list[int]) -> list[int]:
        length = _check.count("the length", self.length(step), 1)
        return [_Index(i, length) for i in batch]

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """As `RampedBatchSampler.set_epoch`."""
        self.batches.set_epoch(epoch)

    def state_dict(self, num_consumed: int) -> dict[str, Any]:
        """As `RampedBatchSampler.state_dict`; the length follows from the step."""
        return self.batches.state_dict(num_consumed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `RampedBatchSampler.load_state_dict`."""
        self.batches.load_state_dict(state)

    @property
    def sampler(self) -> Any:  # type: ignore[override]
        return self.batches.sampler

    @property
    def _origin(self) -> Cursor:  # type: ignore[override]
        return self.batches._origin


class WithLength(Dataset[Any]):
    """A dataset whose samples bring the length along that their indices carry; the link between the pair.

    When to use it: around the dataset of a loader whose ``batch_sampler`` is a `LengthSampler`.

    Values in use: none to choose.

    Cost: a pair for each sample.

    Args:
        dataset: map-style; ``__getitems__`` is used if it has it.

    A plain index, which no `LengthSampler` has made, raises TypeError. Samples are not looked at: nan, inf
    and empty ones pass.

    Example:
        >>> len(WithLength([1, 2, 3]))
        3

    Source: the pair is ours; the method is that of `LengthSampler`, https://arxiv.org/abs/2108.06084
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[_Sample]:
        lengths = []
        for index in indices:
            if not isinstance(index, _Index):
                raise TypeError(
                    f"index {index!r} carries no length: give the loader a LengthSampler as batch_sampler, or the "
                    "dataset without WithLength"
                )
            lengths.append(index.length)
        plain = [int(i) for i in indices]
        many = getattr(self.dataset, "__getitems__", None)
        values = many(plain) if many else [self.dataset[i] for i in plain]
        return [_Sample(value, length) for value, length in zip(values, lengths, strict=True)]


class TruncateCollate:
    """Collate a batch and cut it to the length that came with it; the other half of `LengthSampler`.

        x <- x[:, :L]

    When to use it: as ``collate_fn`` beside `LengthSampler` and `WithLength`; padded or packed batches.

    Limits: the samples are loaded and collated at full length first.

    Values in use: see `LengthSampler`.

    Cost: that of the collate function; the cut makes a copy, so that workers send only what is left.

    Args:
        dim: as in `truncate`.
        collate_fn: samples -> batch; torch's ``default_collate``.

    Called with the samples of a `WithLength` dataset it returns the batch. Other samples raise TypeError; an
    empty list is the collate function's matter. Values, nan or not, are never looked at.

    Example:
        >>> TruncateCollate()
        TruncateCollate(dim=1)

    Source: Li et al. (2022), the Sequence Length Warmup method, https://arxiv.org/abs/2108.06084
    """

    def __init__(
        self, dim: Dims | Mapping[Any, Dims] = 1, collate_fn: Callable[[list[Any]], Any] = default_collate
    ) -> None:
        self.dim = dim
        self.collate_fn = collate_fn

    def __call__(self, samples: Sequence[Any]) -> Any:
        values, length = _opened(samples)
        batch = self.collate_fn(values)
        # a view would take the whole storage along through the workers' shared memory
        return batch if length is None else owned(truncate(batch, length, self.dim))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim})"


class FoldCollate:
    """Collate a batch and fold it to the length that came with it: shorter sequences, more of them.

        (B, T) -> (B floor(T / L), L)

    When to use it: as `TruncateCollate`, for causal language models on packed text: a step keeps its tokens.

    Limits: every entry needs a time dimension, or ``dim`` must choose.

    Values in use: see `LengthSampler`.

    Cost: that of the collate function and a copy.

    Args:
        dim: as in `fold`.
        collate_fn: samples -> batch; torch's ``default_collate``.

    Called with the samples of a `WithLength` dataset it returns the batch. Other samples raise TypeError; an
    empty list is the collate function's matter. Values, nan or not, are never looked at.

    Example:
        >>> FoldCollate()
        FoldCollate(dim=None)

    Source: Li et al. (2022), the Sequence Length Warmup method, https://arxiv.org/abs/2108.06084
    """

    def __init__(
        self,
        dim: Mapping[Any, Dims] | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self.dim = dim
        self.collate_fn = collate_fn

    def __call__(self, samples: Sequence[Any]) -> Any:
        values, length = _opened(samples)
        batch = self.collate_fn(values)
        return batch if length is None else owned(fold(batch, length, self.dim))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim})"


def _opened(samples: Sequence[Any]) -> tuple[list[Any], int | None]:
    """The samples themselves, and the length they agree on; None if there are none."""
    for sample in samples:
        if not isinstance(sample, _Sample):
            raise TypeError(
                f"a sample of type {type(sample).__name__} came without a length: wrap the dataset in WithLength"
            )
    lengths = {s.length for s in samples}
    if len(lengths) > 1:
        raise ValueError(
            f"the samples of a batch have lengths {sorted(lengths)}: they are of several batches"
        )
    return [s.value for s in samples], next(iter(lengths), None)
