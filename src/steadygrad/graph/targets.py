"""What a loss is measured against: the targets of a term as sums that add up over batches, and their best constant.

The best constant prediction needs little of the targets: class counts, a mean and a variance per column, or, where the
best constant is a median, a sample of the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

MAX_COLUMNS = 4096  # wider targets are taken as one column
MAX_VALUES = 4096  # kept per column, for medians
MAX_KEPT = 2**18  # kept in all
BISECTIONS = 50

CLASSES = ("cross_entropy", "kl_div")
MEDIANS = ("l1", "smooth_l1", "huber")
BINARY = ("bce", "bce_logits")


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Targets:
    """The targets of one kind of term, over one batch or over many.

    Weights are relative: a target that counts as much as the average one of its batch has weight 1.
    """

    kind: str
    shape: tuple[int, ...]  # of the prediction, without its first axis
    rows: float = 0.0  # targets that count
    counts: np.ndarray = field(default_factory=_none)  # per class, weighted
    entropy: float = 0.0  # sum over rows of the entropy of each target distribution
    weight: np.ndarray = field(default_factory=_none)  # per column
    mean: np.ndarray = field(default_factory=_none)  # per column
    squares: np.ndarray = field(default_factory=_none)  # per column, weighted sum of (target - mean)^2
    values: np.ndarray = field(default_factory=_none)  # [kept, columns], nan where a target does not count
    every: int = 1  # one of so many rows is kept
    seen: int = 0  # rows of values that were offered
    knee: float = 0.0  # huber's delta, smooth_l1's beta
    pos_weight: np.ndarray = field(default_factory=_none)  # of a bce, per column or one for all

    @property
    def distinct(self) -> int:
        """Number of classes that occur; 0 for targets that are no classes."""
        return int(np.count_nonzero(self.counts))

    @property
    def std(self) -> float:
        """Standard deviation of the targets, the mean over columns; nan for classes."""
        if not self.weight.size or not self.weight.sum() > 0:
            return math.nan
        used = self.weight > 0
        return float(np.sqrt(np.maximum(self.squares[used] / self.weight[used], 0.0)).mean())

    @property
    def average(self) -> float:
        """Mean of all targets; nan for classes."""
        total = self.weight.sum()
        return float((self.weight * self.mean).sum() / total) if self.weight.size and total > 0 else math.nan

    @property
    def mean_square(self) -> float:
        """Mean of the squared targets: the loss of the constant 0; nan for classes."""
        total = self.weight.sum()
        if not self.weight.size or not total > 0:
            return math.nan
        return float((self.squares + self.weight * self.mean**2).sum() / total)

    def __add__(self, other: Targets) -> Targets:
        """The targets of both. Same kind, shape and columns."""
        weight = self.weight + other.weight
        share = np.divide(other.weight, weight, out=np.zeros_like(weight), where=weight > 0)
        values, every = _thinned(self, other)
        with np.errstate(invalid="ignore", over="ignore"):  # targets of a value-learning loop may overflow
            gap = other.mean - self.mean
            mean = self.mean + gap * share
            squares = self.squares + other.squares + gap**2 * self.weight * share
        return replace(
            self,
            rows=self.rows + other.rows,
            counts=self.counts + other.counts,
            entropy=self.entropy + other.entropy,
            weight=weight,
            mean=mean,
            squares=squares,
            values=values,
            every=every,
            seen=self.seen + other.seen,
            knee=other.knee,
            pos_weight=other.pos_weight,
        )

    def matches(self, other: Targets) -> bool:
        """Whether the two can be added."""
        return (
            (self.kind, self.shape) == (other.kind, other.shape)
            and self.counts.shape == other.counts.shape
            and self.weight.shape == other.weight.shape
            and self.values.shape[1:] == other.values.shape[1:]
        )

    def to_json(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in kept.items()}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Targets:
        arrays = ("counts", "weight", "mean", "squares", "pos_weight")
        loaded = {**state, "shape": tuple(state["shape"])} | {
            n: np.asarray(state[n], dtype=float) for n in arrays
        }
        columns = len(state["weight"])
        keeps = state["kind"] in MEDIANS
        loaded["values"] = np.asarray(state["values"], dtype=float).reshape(-1, columns) if keeps else _none()
        return cls(**loaded)


def capacity(columns: int) -> int:
    """Rows of values that are kept for so many columns."""
    return max(16, min(MAX_VALUES, MAX_KEPT // max(columns, 1)))


def _thinned(old: Targets, new: Targets) -> tuple[np.ndarray, int]:
    """The kept values of both: every k-th of all rows that were offered, k doubled whenever there are too many."""
    if old.kind not in MEDIANS:
        return _none(), 1
    every = math.lcm(old.every, new.every)
    first = -(-(-old.seen % every) // new.every)  # the new rows go on in the rhythm of the old
    values = np.concatenate([old.values[:: every // old.every], new.values[first :: every // new.every]])
    while len(values) > capacity(values.shape[1]):
        values, every = values[::2], every * 2
    return values, every


def trivial(targets: Targets) -> float:
    """The mean loss per element of the best constant prediction on these targets; nan if there is none to tell.

    One constant per column, or one distribution over the classes.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if targets.kind in CLASSES:
            return _prior_entropy(targets)
        total = targets.weight.sum()
        if not targets.weight.size or not total > 0:
            return math.nan
        if targets.kind == "mse":
            return float(targets.squares.sum() / total)
        if targets.kind in BINARY:
            return float((_binary_entropy(targets) * targets.weight).sum() / total)
        if targets.kind in MEDIANS:
            used = targets.weight > 0
            per_column = _least_deviation(targets.values[:, used], targets.kind, targets.knee)
            return float((per_column * targets.weight[used]).sum() / total)
    return math.nan


def _prior_entropy(targets: Targets) -> float:
    total = targets.counts.sum()
    if not total > 0:
        return math.nan
    prior = targets.counts[targets.counts > 0] / float(total)
    entropy = max(0.0, float(-(prior * np.log(prior)).sum()))
    return entropy - targets.entropy / float(total) if targets.kind == "kl_div" else entropy


def _binary_entropy(targets: Targets) -> np.ndarray:
    """Per column: a m log(1/c) + (1 - m) log(1/(1 - c)) at its best c, with m the mean and a the positive weight."""
    positive = targets.mean * (targets.pos_weight if targets.pos_weight.size else 1.0)
    negative = 1.0 - targets.mean
    best = positive / (positive + negative)
    parts = [
        np.where(part > 0, -part * np.log(p), 0.0) for part, p in ((positive, best), (negative, 1 - best))
    ]
    return parts[0] + parts[1]


def _least_deviation(values: np.ndarray, kind: str, knee: float) -> np.ndarray:
    """Mean loss per column at the constant where its derivative, which only grows, changes sign."""
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    if kind == "l1" or knee == 0:
        middle = np.nanmedian(values, axis=0)
    else:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            rises = np.nansum(np.clip(middle - values, -knee, knee), axis=0) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    return np.nanmean(deviation(np.abs(values - middle), kind, knee), axis=0)


def deviation(error: np.ndarray, kind: str, knee: float) -> np.ndarray:
    """Loss of an absolute error: ``l1``, ``huber`` with its delta, ``smooth_l1`` with its beta."""
    if kind == "l1" or knee == 0:
        return error
    near = 0.5 * error**2
    far = knee * (error - 0.5 * knee)
    loss = np.where(error < knee, near, far)
    return loss / knee if kind == "smooth_l1" else loss
