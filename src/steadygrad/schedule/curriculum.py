"""Easy samples first: samplers over any map-style dataset, by a difficulty of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from steadygrad import _check
from steadygrad.schedule.sampler import IndexSampler, check_same, mixed_seed

Difficulty = Sequence[float] | np.ndarray | Tensor


def difficulties(dataset: Dataset[Any], difficulty: Callable[[Any], float]) -> Tensor:
    """The difficulty of every sample, asked once, in order.

    When to use it: before a curriculum sampler, whose argument it makes: sentence length, the rarity of its
    words, the loss of a small model. Save the result where the function is slow.

    Values in use: sentence length and word rarity (Platanios et al.), the loss of a trained teacher (Hacohen
    & Weinshall). For an anti-curriculum, hardest first, negate them.

    Cost: one read of the whole dataset.

    Args:
        dataset: map-style, with a length.
        difficulty: sample -> number, or a tensor of one number.

    Returns float64, shape (N,). nan raises ValueError and names the sample; inf is allowed: hardest of all.

    Example:
        >>> difficulties(["a tree", "so", "many words"], len)
        tensor([ 6.,  2., 10.], dtype=torch.float64)

    Source: the scoring function of Hacohen & Weinshall (2019), section 2, https://arxiv.org/abs/1904.03626
    """
    values = [float(difficulty(dataset[i])) for i in range(len(dataset))]  # type: ignore[arg-type]
    return _scores(values)


def _scores(difficulty: Difficulty) -> Tensor:
    if isinstance(difficulty, (Tensor, np.ndarray)):
        scores = torch.as_tensor(difficulty).detach().cpu()
    else:
        scores = torch.tensor(difficulty, dtype=torch.float64)
    if scores.ndim != 1 or scores.numel() == 0:
        raise ValueError(f"difficulty must hold one number for each sample, got shape {tuple(scores.shape)}")
    if scores.is_complex():
        raise TypeError(f"difficulty must be real numbers, got {scores.dtype}")
    if scores.is_floating_point() and scores.isnan().any():
        bad = scores.isnan().nonzero().flatten().tolist()
        raise ValueError(
            f"difficulty is nan for {len(bad)} of {scores.numel()} samples, the first are {bad[:5]}: "
            "they have no place in an order; give them a number, inf for the end"
        )
    return scores


def competent_prefix(share: float, num_data: int) -> int:
    """How many of the easiest samples are open: ceil(share * N), at least 1."""
    _check.fraction("the pacing's share", share)
    return max(1, math.ceil(share * num_data - 1e-9))  # 0.29 * 100 is 28.999...: rounding must not decide


class _Curriculum(IndexSampler):
    """An order by difficulty that may be changed between epochs."""

    def __init__(
        self,
        difficulty: Difficulty,
        pacing: Callable[[int], float],
        seed: int,
        num_replicas: int | None,
        rank: int | None,
    ) -> None:
        if not callable(pacing):
            raise TypeError(f"pacing is a function of the step, got {type(pacing).__name__}: {pacing!r}")
        scores = _scores(difficulty)
        super().__init__(scores.numel(), seed, num_replicas, rank)
        self.pacing = pacing
        self._first_order = torch.argsort(scores, stable=True)
        self._order: Tensor | None = None  # None: the first one
        self._coming: Tensor | None = None  # from the next epoch on

    def set_difficulty(self, difficulty: Difficulty) -> None:
        """Order the samples anew from the next epoch on: by the loss each has now, say.

        The running epoch, and the rest of one that is being resumed, keep their order; states carry both.

        Args:
            difficulty: one number for each sample; nan raises and nothing is changed.
        """
        scores = _scores(difficulty)
        if scores.numel() != self.num_data:
            raise ValueError(f"difficulty must hold {self.num_data} numbers, got {scores.numel()}")
        self._coming = torch.argsort(scores, stable=True)

    def _begin(self, place: int) -> None:
        if place == 0 and self._coming is not None:
            self._order, self._coming = self._coming, None

    def _easiest(self) -> Tensor:
        return self._first_order if self._order is None else self._order

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "order": self._order, "coming": self._coming}

    def _load_settings(self, settings: Mapping[str, Any]) -> None:
        mine = {k: v for k, v in self._settings().items() if k not in ("order", "coming")}
        check_same(type(self).__name__, settings, mine)
        orders = [settings["order"], settings["coming"]]
        for order in orders:
            if order is not None and not (
                isinstance(order, Tensor) and torch.equal(order.sort().values, torch.arange(self.num_data))
            ):
                raise ValueError(f"an order must be a permutation of {self.num_data} samples, got {order!r}")
        self._order, self._coming = (None if o is None else o.clone() for o in orders)


class CurriculumSampler(_Curriculum):
    """At every step draw from the easiest samples; how many of them are open grows with the step.

        at step t: indices uniform from the ceil(c(t) N) easiest, with replacement

    Equal difficulties keep their order in the dataset. An epoch is ``num_samples`` draws; the steps go on
    counting across epochs.

    When to use it: noisy or very uneven data, on which the first steps explode or learn nothing; sequences,
    short ones first. Where the plain run is stable and the data clean, expect no gain.

    Limits: with replacement: in N draws of an open curriculum about 37 % of the samples are missed (each
    epoch others); `EpochCurriculumSampler` visits each once. The sampler counts draws, not optimizer steps:
    under gradient accumulation ``samples_per_step`` is the whole batch of a step.

    Values in use: `competence_pacing` with c_0 = 0.01 (Platanios et al.); `exponential_pacing` (Hacohen &
    Weinshall).

    Cost: a sort at the start; a seeded draw for each step, about 30 microseconds and the batch itself.

    Args:
        difficulty: one number for each sample, small is easy; see `difficulties`.
        pacing: step -> open share, 0 to 1; bind the rest: ``partial(competence_pacing, total_steps=10_000)``.
        samples_per_step: draws that make a step, over all ranks: batch size times ranks.
        num_samples: draws of this rank in an epoch; None is N over the number of ranks, rounded up.
        seed: at least 0, the same on all ranks. torch's global generator is not used.
        num_replicas: ranks; None asks torch.distributed, and is 1 without it.
        rank: None asks torch.distributed, and is 0 without it.

    No sample at all and a nan difficulty raise ValueError; inf is the end of the order.

    Example:
        >>> from functools import partial
        >>> from steadygrad.schedule import linear_pacing
        >>> pace = partial(linear_pacing, total_steps=4, start=0.0)
        >>> sampler = CurriculumSampler([3.0, 1.0, 2.0, 4.0], pace, samples_per_step=1)
        >>> drawn = list(sampler)
        >>> drawn[0], set(drawn[:3]) <= {1, 2}  # 0.0, 0.25 and 0.5 of the four
        (1, True)

    Source: Platanios et al. (2019), Algorithm 1, https://arxiv.org/abs/1903.09848; Hacohen & Weinshall
    (2019), Algorithm 1, https://arxiv.org/abs/1904.03626
    """

    def __init__(
        self,
        difficulty: Difficulty,
        pacing: Callable[[int], float],
        samples_per_step: int,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(difficulty, pacing, seed, num_replicas, rank)
        self.samples_per_step = _check.count("samples_per_step", samples_per_step, 1)
        if samples_per_step % self.num_replicas:
            raise ValueError(
                f"samples_per_step must be a multiple of num_replicas = {self.num_replicas}, got {samples_per_step}: "
                "it counts the samples of all ranks"
            )
        if num_samples is None:
            num_samples = math.ceil(self.num_data / self.num_replicas)
        self.num_samples = _check.count("num_samples", num_samples, 1)

    def _epoch_length(self, epoch: int) -> int:
        return self.num_samples

    def _draw(self, epoch: int, place: int) -> Iterator[int]:
        order = self._easiest()
        each = self.samples_per_step // self.num_replicas
        at, end = epoch * self.num_samples + place, (epoch + 1) * self.num_samples
        while at < end:
            step, offset = divmod(at, each)
            for index in self._of_step(order, step)[offset : offset + end - at]:
                at += 1
                yield index

    def _of_step(self, order: Tensor, step: int) -> list[int]:
        open_samples = competent_prefix(self.pacing(step), self.num_data)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, step))
        drawn = torch.randint(open_samples, (self.samples_per_step,), generator=generator)
        return order[drawn[self.rank :: self.num_replicas]].tolist()

    def _settings(self) -> dict[str, Any]:
        mine = {"samples_per_step": self.samples_per_step, "num_samples": self.num_samples}
        return {**super()._settings(), **mine}


class EpochCurriculumSampler(_Curriculum):
    """In every epoch visit the easiest samples once each, shuffled; how many of them grows with the epoch.

        epoch e: a permutation of the ceil(c(e) N) easiest

    Equal difficulties keep their order in the dataset. The first epochs are short.

    When to use it: as `CurriculumSampler`, where every open sample shall be seen equally often; small data.

    Limits: the length of an epoch changes: a scheduler that counts steps for a fixed number per epoch must
    be told.

    Values in use: c_0 = 0.1 to 0.3 and all samples after a third of the epochs ("baby steps").

    Cost: a sort at the start, a permutation each epoch.

    Args:
        difficulty: one number for each sample, small is easy; see `difficulties`.
        pacing: epoch -> open share, 0 to 1: ``partial(linear_pacing, total_steps=10)`` for ten epochs.
        seed: at least 0, the same on all ranks. torch's global generator is not used.
        num_replicas: ranks; None asks torch.distributed, and is 1 without it. All get equally many; some
            samples are repeated for it.
        rank: None asks torch.distributed, and is 0 without it.

    No sample at all and a nan difficulty raise ValueError; inf is the end of the order.

    Example:
        >>> from functools import partial
        >>> from steadygrad.schedule import linear_pacing
        >>> pace = partial(linear_pacing, total_steps=2, start=0.25)
        >>> sampler = EpochCurriculumSampler([3.0, 1.0, 2.0, 4.0], pace)
        >>> [sorted(sampler) for epoch in range(3)]
        [[1], [0, 1, 2], [0, 1, 2, 3]]

    Source: "baby steps": Spitkovsky, Alshawi & Jurafsky (2010), https://aclanthology.org/N10-1116/; curricula:
    Bengio et al. (2009), https://doi.org/10.1145/1553374.1553380
    """

    def __init__(
        self,
        difficulty: Difficulty,
        pacing: Callable[[int], float],
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(difficulty, pacing, seed, num_replicas, rank)

    def _epoch_length(self, epoch: int) -> int:
        return math.ceil(competent_prefix(self.pacing(epoch), self.num_data) / self.num_replicas)

    def _draw(self, epoch: int, place: int) -> Iterator[int]:
        easiest = self._easiest()[: competent_prefix(self.pacing(epoch), self.num_data)]
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        shuffled = easiest[torch.randperm(len(easiest), generator=generator)]
        even = torch.arange(self._epoch_length(epoch) * self.num_replicas) % len(shuffled)
        return iter(shuffled[even][self.rank :: self.num_replicas][place:].tolist())
