"""Batch sizes that grow: how large the batch is after so many samples or steps. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steadygrad import _check
from steadygrad.schedule._step import checked_step


def _bounds(start: int, end: int) -> None:
    _check.count("start", start, 1)
    _check.count("end", end, start, f": it must not be below start = {start}")


def linear_batch_size(num_samples: int, start: int, end: int, ramp_samples: int, multiple_of: int = 1) -> int:
    """Let the batch grow linearly with the samples seen, as GPT-3 did.

        B(n) = B_0 + (B_1 - B_0) min(1, n / N), rounded down to a multiple of m, at least B_0

    When to use it: large batches are efficient but waste the first steps, whose gradients agree anyway; small
    ones early also hold the noise that a large learning rate needs.

    The learning rate: where it was tuned for B_1, it may be too large for B_0. For SGD scale it by B / B_1,
    for Adam by sqrt(B / B_1), or let the ramp coincide with the warm-up.

    Values in use: from 32 thousand tokens to the full batch over the first 4 to 12 billion tokens (GPT-3).

    Cost: a few operations on single numbers.

    Args:
        num_samples: n, samples seen by all ranks, at least 0.
        start: B_0, over all ranks, at least 1, itself a multiple of m.
        end: B_1, at least B_0, a multiple of m.
        ramp_samples: N, at least 1.
        multiple_of: m, at least 1: ranks times micro-batch.

    Returns the batch size, exactly B_1 from N samples on. Counts that are no whole numbers raise.

    Example:
        >>> [linear_batch_size(n, start=8, end=32, ramp_samples=100, multiple_of=8) for n in (0, 40, 80, 100)]
        [8, 16, 24, 32]

    Source: Brown et al. (2020), appendix B, https://arxiv.org/abs/2005.14165; the learning rate: Goyal et al.
    (2017), section 2.1, https://arxiv.org/abs/1706.02677, and Malladi et al. (2022),
    https://arxiv.org/abs/2205.10287
    """
    _bounds(start, end)
    _check.count("num_samples", num_samples, 0)
    _check.count("ramp_samples", ramp_samples, 1)
    _check.count("multiple_of", multiple_of, 1)
    if start % multiple_of or end % multiple_of:
        raise ValueError(
            f"start and end must be multiples of multiple_of = {multiple_of}, got {start} and {end}"
        )
    if num_samples >= ramp_samples:
        return end
    grown = start + (end - start) * num_samples // ramp_samples
    return grown - grown % multiple_of


def stepwise_batch_size(num_samples: int, start: int, end: int, increment: int, ramp_samples: int) -> int:
    """Let the batch grow in equal stairs, each held for equally many samples.

        B(n) = min(B_1, B_0 + d floor(n / (N d / (B_1 - B_0))))

    When to use it: as `linear_batch_size`, where each size must be set up (compiled, captured, allocated).

    Values in use: 16, 16, 5 859 375 and 16, 16, 300 000 (start, increment, samples) are usual with Megatron.

    Cost: a few operations on single numbers.

    Args:
        num_samples: n, samples seen by all ranks, at least 0.
        start: B_0, over all ranks, at least 1.
        end: B_1, at least B_0, away from it by a multiple of d.
        increment: d, at least 1.
        ramp_samples: N, at least 1.

    Returns the batch size, exactly B_1 from N samples on. Counts that are no whole numbers raise.

    Example:
        >>> [stepwise_batch_size(n, start=8, end=32, increment=8, ramp_samples=90) for n in (0, 29, 30, 60, 90)]
        [8, 8, 16, 24, 32]

    Source: Megatron-LM's option ``--rampup-batch-size``, https://github.com/NVIDIA/Megatron-LM
    """
    _bounds(start, end)
    _check.count("num_samples", num_samples, 0)
    _check.count("ramp_samples", ramp_samples, 1)
    if (end - start) % _check.count("increment", increment, 1):
        raise ValueError(f"end - start = {end - start} must be a multiple of increment, got {increment}")
    if num_samples >= ramp_samples:
        return end
    stairs = (end - start) // increment
    return start + increment * (num_samples * stairs // ramp_samples)


def milestone_batch_size(step: int, sizes: Mapping[int, int]) -> int:
    """Take the batch size of the last milestone passed: any stairs, by steps or by samples.

        B(t) = sizes[the largest milestone <= t]

    When to use it: a batch that grows where others would lower the learning rate: same curve, fewer steps.

    Values in use: times 5 where the rate would fall to a fifth (Smith et al., CIFAR-10).

    Cost: a look at each milestone.

    Args:
        step: t, steps or samples so far, at least 0.
        sizes: milestone -> batch size over all ranks, at least 1; 0 must be among the milestones.

    Returns the batch size. Counts that are no whole numbers raise.

    Example:
        >>> [milestone_batch_size(step, {0: 128, 1000: 640}) for step in (0, 999, 1000)]
        [128, 128, 640]

    Source: Smith et al. (2018), section 5.1, https://arxiv.org/abs/1711.00489
    """
    now = checked_step(step)
    for milestone, size in sizes.items():
        _check.count("a milestone", milestone, 0)
        _check.count("a batch size", size, 1)
    if 0 not in sizes:
        raise ValueError(f"sizes must have a milestone at 0, got {dict(sizes)}")
    return sizes[max(m for m in sizes if m <= now)]


def accumulation_steps(batch_size: int, micro_batch_size: int, num_replicas: int = 1) -> int:
    """How many micro-batches of each rank make one batch: B / (b R), which must come out even.

    Example:
        >>> accumulation_steps(64, micro_batch_size=8, num_replicas=2)
        4
    """
    together = _check.count("micro_batch_size", micro_batch_size, 1) * _check.count(
        "num_replicas", num_replicas, 1
    )
    if _check.count("batch_size", batch_size, 1) % together:
        raise ValueError(
            f"batch_size must be a multiple of micro_batch_size * num_replicas = {together}, got {batch_size}: "
            "give the ramp multiple_of"
        )
    return batch_size // together


class AccumulationRamp:
    """A growing batch under a fixed micro-batch: how many gradients to add up before the next step.

        k(n) = B(n) / (b R)

    When to use it: the batch of a step does not fit into memory, or the loader's batch must keep its shape
    (compiled models). Otherwise `RampedBatchSampler` makes the batches themselves.

    Usage::

        ramp = AccumulationRamp(partial(linear_batch_size, start=8, end=64, ramp_samples=10**6, multiple_of=8), 8)
        for x, y in loader:  # batches of 8
            (loss_fn(model(x), y) / ramp.num_micro_batches).backward()
            if ramp.micro_step():
                optimizer.step()
                optimizer.zero_grad()

    Limits: the gradient is the mean over equal micro-batches; give the loader ``drop_last=True``. Save its
    state between steps: gradients half added up are not in it.

    Values in use: see `linear_batch_size`.

    Cost: none beside counting.

    Args:
        batch_size: samples seen -> batch over all ranks: bind the rest with ``functools.partial``.
        micro_batch_size: b, samples of one backward pass of one rank, at least 1.
        num_replicas: R, at least 1.

    A batch that is no multiple of b R raises ValueError, and so does a size that is no whole number; nan
    has no place here.

    Example:
        >>> from functools import partial
        >>> ramp = AccumulationRamp(partial(linear_batch_size, start=2, end=6, ramp_samples=4, multiple_of=2), 2)
        >>> [ramp.micro_step() for _ in range(7)]  # batches of 2, 4 and 6
        [True, False, True, False, False, True, False]

    Source: Megatron-LM's option ``--rampup-batch-size``, https://github.com/NVIDIA/Megatron-LM
    """

    def __init__(
        self, batch_size: Callable[[int], int], micro_batch_size: int, num_replicas: int = 1
    ) -> None:
        if not callable(batch_size):
            raise TypeError(f"batch_size is a function of the samples seen, got {type(batch_size).__name__}")
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.num_replicas = num_replicas
        self.num_samples = 0  # in the steps that are complete
        self.num_steps = 0
        self._micro = 0
        self.num_micro_batches = self._micro_batches_after(0)

    def _micro_batches_after(self, num_samples: int) -> int:
        return accumulation_steps(self.batch_size(num_samples), self.micro_batch_size, self.num_replicas)

    def micro_step(self) -> bool:
        """Count a backward pass; True when the optimizer is to step."""
        self._micro += 1
        if self._micro < self.num_micro_batches:
            return False
        self.num_samples += self.num_micro_batches * self.micro_batch_size * self.num_replicas
        self.num_steps += 1
        self._micro = 0
        self.num_micro_batches = self._micro_batches_after(self.num_samples)
        return True

    def state_dict(self) -> dict[str, int]:
        """Steps and samples so far, and the micro-batches of a step that is under way."""
        return {"num_samples": self.num_samples, "num_steps": self.num_steps, "micro": self._micro}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"the state of AccumulationRamp has {sorted(self.state_dict())}, got {sorted(state)}"
            )
        counts = {name: _check.count(name, state[name], 0) for name in state}
        num_micro_batches = self._micro_batches_after(counts["num_samples"])
        if counts["micro"] >= num_micro_batches:
            raise ValueError(
                f"micro must be below the {num_micro_batches} micro-batches of a step, got {counts}"
            )
        self.num_micro_batches = num_micro_batches
        self.num_samples, self.num_steps, self._micro = (
            counts["num_samples"],
            counts["num_steps"],
            counts["micro"],
        )
