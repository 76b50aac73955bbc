"""What the ranks tell each other in a step, laid out in one vector that is added up over all of them.

    [ squares of the raw norms | squares of the applied norms | facts of rank 0 | facts of rank 1 | ... ]

The squares are those of the parts of sharded parameters, one place for each; a part of which several ranks have a copy
counts once. Its own facts are written by one rank only: the sum leaves them as they are, nan and inf too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag

from torch import Tensor

from steadygrad.integrations.ranks.exchange import zeros
from steadygrad.integrations.ranks.meeting import Tables

HELD = 4  # snapshots that a rank can tell of


class Flag(IntFlag):
    """What a rank has to say of itself by yes or no."""

    SAW_LOSS = 1  # of this step
    BAD_OWN = 2  # its own gradients were not finite before they were reduced
    BAD_GRADIENT = 4  # its gradients, or its part of them, are not finite as they reach the optimizer
    BAD_BUFFER = 8  # its forward pass has made a buffer NaN
    OVERFLOW = 16  # its GradScaler takes no step
    MOVED = 32  # it has got other parameters: the ranks have to meet again
    READY = 64  # a snapshot can be written to its disk
    APPLIED = 128  # of the step before: it was taken
    SKIPPED = 256  # the guard left it out
    ALARMED = 512  # one of its rules is alarmed
    BAD_STATE = 1024  # its parameters, buffers or optimizer state are not finite


_PLAIN = (
    "tick",
    "optimizer",
    "flags",
    "loss",
    "passes",
    "raw_square",
    "applied_square",
    "sample",
    "alarm",
    "level",
)
WIDTH = len(_PLAIN) + HELD


@dataclass(slots=True)
class Facts:
    """What one rank says in one step."""

    tick: int  # steps of all optimizers so far
    optimizer: int
    flags: Flag = Flag(0)
    loss: float = 0.0  # of the step, where it was seen
    passes: int = 0  # backward passes
    raw_square: float = (
        0.0  # of the norms of all gradients that are not sharded, together, before the user's clip
    )
    applied_square: float = 0.0  # and as they reach the optimizer
    sample: int = -1  # the first one of its batch whose outputs are not finite; -1: not known
    alarm: int = 0  # number of the rule that was alarmed by the step before; 0: none
    level: float = -math.inf  # of the loss before that alarm
    held: Sequence[int] = ()  # ticks of its good snapshots

    def write(self, place: Tensor) -> None:
        """Into a vector of WIDTH numbers."""
        numbers = [float(getattr(self, name)) for name in _PLAIN]
        held = sorted(self.held)[-HELD:]
        numbers += [float(t) for t in held] + [-1.0] * (HELD - len(held))
        place.copy_(place.new_tensor(numbers))

    @classmethod
    def read(cls, numbers: Sequence[float]) -> Facts:
        """From WIDTH numbers."""
        values = dict(zip(_PLAIN, numbers, strict=False))
        return cls(
            tick=int(values["tick"]),
            optimizer=int(values["optimizer"]),
            flags=Flag(int(values["flags"])),
            loss=values["loss"],
            passes=int(values["passes"]),
            raw_square=values["raw_square"],
            applied_square=values["applied_square"],
            sample=int(values["sample"]),
            alarm=int(values["alarm"]),
            level=values["level"],
            held=tuple(int(t) for t in numbers[len(_PLAIN) :] if t >= 0),
        )


@dataclass(frozen=True, slots=True)
class Merged:
    """What all ranks together have said: the same on all of them, but for ``raw`` and ``applied``.

    Attributes:
        ranks: what each said.
        grad_norm, clipped_grad_norm: of the whole gradient before and after the user's clip: the largest of what the
            ranks have, which is the same for all where they train one model.
        raw, applied: key of each sharded parameter that this rank has a part of -> norm of the whole.
    """

    ranks: tuple[Facts, ...]
    grad_norm: float
    clipped_grad_norm: float
    raw: Mapping[str, float] = field(default_factory=dict)
    applied: Mapping[str, float] = field(default_factory=dict)

    def those(self, flag: Flag) -> list[int]:
        """Positions of the ranks that say so."""
        return [i for i, facts in enumerate(self.ranks) if flag in facts.flags]

    def any(self, flag: Flag) -> bool:
        return any(flag in facts.flags for facts in self.ranks)

    def all(self, flag: Flag) -> bool:
        return all(flag in facts.flags for facts in self.ranks)

    @property
    def loss(self) -> float | None:
        """Mean over the ranks that have one (the last stage of a pipeline); None if nobody has."""
        losses = [facts.loss for facts in self.ranks if Flag.SAW_LOSS in facts.flags]
        return sum(losses) / len(losses) if losses else None

    @property
    def common(self) -> frozenset[int]:
        """Ticks of the good snapshots that every rank has."""
        return frozenset.intersection(*(frozenset(facts.held) for facts in self.ranks))


def lay_out(
    facts: Facts, tables: Tables, me: int, raw: Mapping[str, float], applied: Mapping[str, float]
) -> Tensor:
    """The vector that a rank gives.

    Args:
        facts: its own.
        tables: what the ranks know of each other.
        me: its place among them.
        raw, applied: key of a sharded parameter -> square of the norm of its part, divided by the number of copies.
    """
    n = len(tables.keys)
    vector = zeros(2 * n + WIDTH * len(tables.held))
    for position in tables.held[me]:
        key = tables.keys[position]
        vector[position] = raw.get(key, 0.0)
        vector[n + position] = applied.get(key, 0.0)
    begin = 2 * n + WIDTH * me
    facts.write(vector[begin : begin + WIDTH])
    return vector


def take_apart(vector: Tensor, tables: Tables, me: int) -> Merged:
    """What the sum of all vectors says."""
    n = len(tables.keys)
    numbers = vector.tolist()
    raw, applied, rest = numbers[:n], numbers[n : 2 * n], numbers[2 * n :]
    ranks = tuple(Facts.read(rest[i : i + WIDTH]) for i in range(0, len(rest), WIDTH))
    sums: dict[frozenset[int], tuple[float, float]] = {}
    for held in tables.held:
        if held not in sums:
            places = sorted(held)
            sums[held] = sum(raw[i] for i in places), sum(applied[i] for i in places)
    pairs = list(zip(ranks, tables.held, strict=True))
    overflow = any(Flag.OVERFLOW in facts.flags for facts in ranks)
    mine = tables.held[me]
    return Merged(
        ranks,
        math.inf if overflow else _norm([facts.raw_square + sums[held][0] for facts, held in pairs]),
        math.inf if overflow else _norm([facts.applied_square + sums[held][1] for facts, held in pairs]),
        {tables.keys[i]: math.sqrt(raw[i]) for i in mine},
        {tables.keys[i]: math.sqrt(applied[i]) for i in mine},
    )


def _norm(squares: Sequence[float]) -> float:
    """The largest, inf if one is not finite."""
    return math.sqrt(max(squares)) if all(map(math.isfinite, squares)) else math.inf
