"""What the studies share: the digits data, and runs in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

CLASSES = 10


class Digits(NamedTuple):
    """8 x 8 pictures of digits, each pixel at mean 0 and variance 1 over the training set."""

    x: Tensor  # (N, 64)
    y: Tensor  # (N,)
    x_test: Tensor
    y_test: Tensor


@lru_cache(1)
def digits() -> Digits:
    """The 1,797 digits of scikit-learn, 1,500 to train on, in a fixed shuffle."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y)[order]
    train = x[:1500]
    x = (x - train.mean(0)) / (train.std(0) + 1e-2)  # some pixels are always 0
    return Digits(x[:1500], y[:1500], x[1500:], y[1500:])


def batches(num: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices of batches, epoch after epoch, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num, generator=generator)
        yield from order[: num - num % size].view(-1, size)


def one_thread() -> None:
    """So that a busy machine does not change the time a run takes."""
    torch.set_num_threads(1)


def in_processes(
    work: Callable[[Any], Any], jobs: Sequence[Any], processes: int | None = None
) -> Iterable[tuple[Any, Any]]:
    """Each job with what ``work`` made of it, as they end; one thread a process."""
    workers = processes or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()
