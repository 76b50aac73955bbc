"""What ranks say in a step, added up and read again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import Tensor

from steadygrad.integrations.ranks.blame import origin_unknown, whose
from steadygrad.integrations.ranks.facts import Facts, Flag, Merged, lay_out, take_apart
from steadygrad.integrations.ranks.meeting import Tables
from steadygrad.integrations.ranks.parts import Part, squares

RANKS = (0, 5)
SHARDED = Tables(("a", "b"), (frozenset({0, 1}), frozenset({0, 1})))
PLAIN = Tables((), (frozenset(), frozenset()))


def merged(*said: Facts, tables: Tables = PLAIN, raw=({}, {}), applied=({}, {})) -> list[Merged]:
    """What each rank reads from the sum."""
    total: Tensor = sum(lay_out(f, tables, me, raw[me], applied[me]) for me, f in enumerate(said))  # type: ignore
    return [take_apart(total.clone(), tables, me) for me in range(len(said))]


def test_each_rank_reads_what_each_has_said():
    said = [
        Facts(7, 1, Flag.SAW_LOSS | Flag.READY, 2.5, 3, 4.0, 1.0, -1, 0, -math.inf, (0, 8, 16)),
        Facts(7, 1, Flag.SAW_LOSS | Flag.APPLIED, math.inf, 1, 9.0, 4.0, 3, 12, 0.5, (0, 16, 32)),
    ]
    for m in merged(*said):
        assert [(f.tick, f.optimizer, f.flags, f.loss, f.sample, f.alarm, f.level) for f in m.ranks] == [
            (f.tick, f.optimizer, f.flags, f.loss, f.sample, f.alarm, f.level) for f in said
        ]
        assert m.common == {0, 16} and m.loss == math.inf
        assert (m.grad_norm, m.clipped_grad_norm) == (3.0, 2.0)
        assert m.those(Flag.READY) == [0] and m.any(Flag.APPLIED) and not m.all(Flag.APPLIED)


def test_parts_add_up_to_the_norms_of_the_whole():
    one = merged(
        Facts(0, 0, raw_square=1.0, applied_square=1.0),
        Facts(0, 0, raw_square=1.0, applied_square=1.0),
        tables=SHARDED,
        raw=({"a": 9.0, "b": 1.0}, {"a": 16.0, "b": 8.0}),
        applied=({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 2.0}),
    )
    for m in one:
        assert m.raw == {"a": 5.0, "b": 3.0} and m.grad_norm == pytest.approx(math.sqrt(35))
        assert m.clipped_grad_norm == 2.0


def test_nan_on_one_rank_is_inf_for_all():
    for m in merged(Facts(0, 0, raw_square=math.inf, applied_square=math.inf), Facts(0, 0, raw_square=1.0)):
        assert m.grad_norm == m.clipped_grad_norm == math.inf


def test_mean_loss_is_that_of_the_ranks_that_have_one():
    last_stage = Facts(0, 0, Flag.SAW_LOSS, loss=4.0)
    assert merged(Facts(0, 0), last_stage)[0].loss == 4.0
    assert merged(Facts(0, 0), Facts(0, 0))[0].loss is None


def test_copies_of_a_part_count_once():
    parts = [Part(0, "a", (0, 1), 2)]
    found, rest = squares(parts, np.array([3.0, np.nan, 2.0]))
    assert found == {"a": 4.5} and rest == 4.0
    assert squares(parts, np.array([np.inf, 1e200, 0.0])) == ({"a": np.inf}, np.inf)


BAD = {"raw_square": math.inf, "applied_square": math.inf}
GRADIENT = Flag.SAW_LOSS | Flag.BAD_GRADIENT


@pytest.mark.parametrize(
    "first, second, text, unknown",
    [
        (Facts(0, 0, raw_square=1.0), Facts(0, 0, raw_square=1.0), "", False),
        (
            Facts(0, 0, GRADIENT, 1.0, **BAD),
            Facts(0, 0, GRADIENT, math.nan, sample=3, **BAD),
            "the loss of rank 5 is nan, sample 3 of its batch",
            False,
        ),
        (
            Facts(0, 0, GRADIENT, 1.0, **BAD),
            Facts(0, 0, GRADIENT | Flag.BAD_OWN, 1.0, **BAD),
            "made by rank 5, before the reduction",
            False,
        ),
        (
            Facts(0, 0, raw_square=1.0),
            Facts(0, 0, GRADIENT, 1.0, **BAD),
            "on rank 5 alone, after the reduction",
            False,
        ),
        (
            Facts(0, 0, GRADIENT, 1.0, **BAD),
            Facts(0, 0, GRADIENT, 1.0, **BAD),
            "on all ranks, and on none before the reduction",
            True,
        ),
        (
            Facts(0, 0, Flag.OVERFLOW),
            Facts(0, 0, Flag.SAW_LOSS, 1.0, raw_square=1.0),
            "the GradScaler of rank 0 has found an overflow",
            False,
        ),
    ],
)
def test_what_came_first_is_blamed(first, second, text, unknown):
    for m in merged(first, second):
        assert whose(m, RANKS) == text and origin_unknown(m) is unknown
