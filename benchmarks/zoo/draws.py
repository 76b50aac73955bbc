"""Random numbers of a family: what is drawn for a seed, and generators for its batches."""

from __future__ import annotations

import math

import numpy as np
import torch


def uniform(random: np.random.RandomState, low: float, high: float) -> float:
    return float(random.uniform(low, high))


def log_uniform(random: np.random.RandomState, low: float, high: float) -> float:
    """Every factor of ten as likely as the next."""
    return math.exp(random.uniform(math.log(low), math.log(high)))


def integer(random: np.random.RandomState, low: int, high: int) -> int:
    """Both ends included."""
    return int(random.randint(low, high + 1))


def generator(seed: int, i: int = 0) -> torch.Generator:
    """A generator of its own for ``(seed, i)``: batches neither read nor move the global state."""
    return torch.Generator().manual_seed((seed * 1_000_003 + i * 7_919 + 13) % 2**62)
