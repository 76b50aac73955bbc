"""The tables of the conformance suites: one line for each shape, pacing and sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from steadygrad import schedule as s

N = 20  # warm-up steps, or length of a pacing


@dataclass(frozen=True)
class Shape:
    """A pure function of the step, with a plain formula of t = step + 1 (or of the step, for a pacing)."""

    name: str
    f: Callable[[int], float]
    formula: Callable[[float], float]
    whole_from: int | None  # the first step at exactly 1.0 for good; None: it falls again


def cosine(x: float) -> float:
    return (1 - math.cos(math.pi * x)) / 2


RISES = [
    Shape("linear", partial(s.linear_warmup, warmup_steps=N), lambda t: t / N, N - 1),
    Shape(
        "linear from 0.2",
        partial(s.linear_warmup, warmup_steps=N, start_factor=0.2),
        lambda t: 0.2 + 0.8 * t / N,
        N - 1,
    ),
    Shape("cosine", partial(s.cosine_warmup, warmup_steps=N), lambda t: cosine(t / N), N - 1),
    Shape(
        "exponential",
        partial(s.exponential_warmup, warmup_steps=N),
        lambda t: math.exp(math.log(0.01) * (1 - t / N)),
        N - 1,
    ),
    Shape("constant", partial(s.constant_warmup, warmup_steps=N), lambda t: 0.1, N - 1),
    Shape("sqrt", partial(s.sqrt_warmup, warmup_steps=N), lambda t: (t / N) ** 0.5, N - 1),
    Shape("untuned linear", partial(s.untuned_linear_warmup, beta2=0.9), lambda t: t / 20, N),
    Shape(
        "untuned exponential",
        partial(s.untuned_exponential_warmup, beta2=0.9),
        lambda t: 1 - math.exp(-0.1 * t),
        400,
    ),
]

PACINGS = [
    Shape("linear", partial(s.linear_pacing, total_steps=N, start=0.1), lambda t: 0.1 + 0.9 * t / N, N),
    Shape("root", partial(s.root_pacing, total_steps=N), lambda t: 0.1 + 0.9 * (t / N) ** 0.5, N),
    Shape(
        "root 3",
        partial(s.root_pacing, total_steps=N, start=0.0, degree=3),
        lambda t: math.pow(t / N, 1 / 3),
        N,
    ),
    Shape(
        "competence",
        partial(s.competence_pacing, total_steps=N),
        lambda t: math.sqrt(t * (1 - 0.01**2) / N + 0.01**2),
        N,
    ),
    Shape(
        "competence 5",
        partial(s.competence_pacing, total_steps=N, degree=5, start=0.3),
        lambda t: (t * (1 - 0.3**5) / N + 0.3**5) ** 0.2,
        N,
    ),
    Shape(
        "exponential",
        partial(s.exponential_pacing, step_length=5, start=0.1, increase=2),
        lambda t: 0.1 * 2 ** math.floor(t / 5),
        20,
    ),
    Shape("single step", partial(s.single_step_pacing, step_length=7), lambda t: 0.1, 7),
]


@dataclass(frozen=True)
class Sampling:
    """A sampler of indices or batches, built anew from nothing."""

    name: str
    build: Callable[..., Any]  # (num_replicas, rank) -> sampler


DATA = 23
SCORES = [float((7 * i) % DATA) for i in range(DATA)]
pace = partial(s.competence_pacing, total_steps=12, start=0.1)
grow = partial(s.linear_batch_size, start=2, end=8, ramp_samples=40, multiple_of=2)


def ranks(num_replicas: int, rank: int) -> dict[str, int]:
    return {"num_replicas": num_replicas, "rank": rank}


def shuffled(r: int, k: int) -> s.ResumableSampler:
    return s.ResumableSampler(range(DATA), seed=5, **ranks(r, k))


def drawn(r: int, k: int) -> s.CurriculumSampler:
    return s.CurriculumSampler(SCORES, pace, samples_per_step=4, seed=5, **ranks(r, k))


def by_epoch(r: int, k: int) -> s.EpochCurriculumSampler:
    return s.EpochCurriculumSampler(
        SCORES, partial(s.linear_pacing, total_steps=3, start=0.6), 5, **ranks(r, k)
    )


INDEX_SAMPLERS = [
    Sampling("shuffled", shuffled),
    Sampling("in order", lambda r, k: s.ResumableSampler(range(DATA), shuffle=False, **ranks(r, k))),
    Sampling("drop_last", lambda r, k: s.ResumableSampler(range(DATA), drop_last=True, **ranks(r, k))),
    Sampling("curriculum", drawn),
    Sampling("epoch curriculum", by_epoch),
]

BATCH_SAMPLERS = [
    Sampling("fixed", lambda r, k: s.RampedBatchSampler(shuffled(r, k), 4)),
    Sampling("fixed drop_last", lambda r, k: s.RampedBatchSampler(shuffled(r, k), 4, drop_last=True)),
    Sampling("ramp", lambda r, k: s.RampedBatchSampler(shuffled(r, k), grow)),
    Sampling("ramp drop_last", lambda r, k: s.RampedBatchSampler(shuffled(r, k), grow, drop_last=True)),
    Sampling(
        "ramp by step",
        lambda r, k: s.RampedBatchSampler(
            shuffled(r, k), partial(s.milestone_batch_size, sizes={0: 2, 5: 6, 9: 4}), by_step=True
        ),
    ),
    Sampling("ramp on curriculum", lambda r, k: s.RampedBatchSampler(drawn(r, k), grow)),
    Sampling("fixed on epoch curriculum", lambda r, k: s.RampedBatchSampler(by_epoch(r, k), 4)),
    Sampling(
        "lengths",
        lambda r, k: s.LengthSampler(s.RampedBatchSampler(shuffled(r, k), 4), lambda step: 8 + step),
    ),
]
SAMPLERS = INDEX_SAMPLERS + BATCH_SAMPLERS


def tagged(item: Any) -> Any:
    """An index, or a batch with the length that it carries."""
    if not isinstance(item, list):
        return item
    return item, [getattr(i, "length", None) for i in item]
