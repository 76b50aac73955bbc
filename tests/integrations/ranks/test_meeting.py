"""Ranks meet and add up: each a thread here, over a store of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from steadygrad.integrations.ranks import meeting
from steadygrad.integrations.ranks.exchange import Exchange, zeros
from steadygrad.integrations.ranks.group import (
    Group,
    RankLost,
    RanksDiffer,
    check_process_group,
    group_of,
    named,
)
from steadygrad.integrations.ranks.meeting import Meeting

WORLD = (3, 4, 8)  # numbers of the ranks in their world
SETTINGS = {"guard": "on", "tier": "cheap"}


def together(work: Callable[[int, Meeting], Any], present: int = 3, timeout: float = 5.0) -> list[Any]:
    """Run ``work`` as each of the ranks that are present; what they returned or raised."""
    store, found = dist.HashStore(), [None] * present
    meetings = [Meeting(Group(WORLD, me), timeout, store) for me in range(present)]
    for one in meetings:
        one.store = dist.PrefixStore("of this test", store)  # else each would count as a meeting of its own

    def run(me: int) -> None:
        try:
            found[me] = work(me, meetings[me])
        except Exception as error:  # noqa: BLE001 - handed to the test
            found[me] = error

    threads = [threading.Thread(target=run, args=(me,)) for me in range(present)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_ranks_learn_what_lies_where():
    shards = [{"b": (3, 4), "a": (3, 4)}, {"b": (3, 4), "a": (3, 4)}, {}]
    tables = together(lambda me, meeting: meeting.meet(SETTINGS, shards[me]))
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].keys == ("a", "b")
    assert tables[0].held == (frozenset({0, 1}), frozenset({0, 1}), frozenset())


def test_they_can_meet_again():
    def twice(me, meeting):
        return meeting.meet(SETTINGS, {}).keys, meeting.meet(SETTINGS, {"new": WORLD}).keys

    assert together(twice) == [((), ("new",))] * 3


def test_settings_that_differ_are_named_with_both_sides_on_all_ranks():
    errors = together(lambda me, meeting: meeting.meet({**SETTINGS, "tier": "deep" if me else "cheap"}, {}))
    assert {type(e) for e in errors} == {RanksDiffer}
    assert {str(e) for e in errors} == {
        "the ranks of one training watch it differently: tier is 'cheap' on rank 3 and 'deep' on ranks 4, 8. "
        "Give every rank the same settings"
    }


def test_group_that_leaves_out_a_part_of_a_parameter_is_refused():
    (error, *_) = together(
        lambda me, meeting: meeting.meet(SETTINGS, {"0|fc.weight|3,9": (3, 9)} if me == 0 else {})
    )
    assert isinstance(error, RanksDiffer)
    assert "fc.weight of rank 3 is also sharded over rank 9: pass a group that has all of them" in str(error)


def test_rank_that_does_not_come_is_named_to_all_that_did():
    errors = together(lambda me, meeting: meeting.meet(SETTINGS, {}), present=2, timeout=0.2)
    assert {type(e) for e in errors} == {RankLost}
    assert all(
        str(e).startswith("rank 8 did not take part within 0.2 s. Watch on every rank") for e in errors
    )


def test_every_rank_gets_the_sum_and_nan_stays_in_its_place():
    def add(me, meeting):
        exchange, vector = Exchange(Group(WORLD, me), meeting), zeros(4)
        vector[me], vector[3] = float("nan") if me == 1 else me + 1.0, 1.0
        return exchange.add_up(vector).tolist(), exchange.count

    for numbers, count in together(add):
        assert numbers[0] == 1.0 and numbers[1] != numbers[1] and numbers[2:] == [3.0, 3.0] and count == 1


def test_who_leaves_says_why():
    def add(me, meeting):
        exchange = Exchange(Group(WORLD, me), meeting)
        exchange.add_up(zeros(1))
        if me == 2:
            exchange.leave("has ended its watch")
        try:
            exchange.add_up(zeros(1))
        finally:
            exchange.leave("has followed")  # as a session does that switches itself off

    errors = together(add)
    assert {type(e) for e in errors} == {RankLost}
    assert ["rank 8 has ended its watch" in str(e) for e in errors[:2]] == [True] * 2, errors
    assert str(errors[2]) == "this rank has left"


def test_rank_that_dies_is_named(monkeypatch):
    monkeypatch.setattr(meeting, "ROLL_CALL", 0.3)

    def add(me, place):
        exchange = Exchange(Group(WORLD, me), place)
        exchange.add_up(zeros(1))
        if me == 1:
            exchange._gloo = None  # as when its process has ended
            return
        exchange.add_up(zeros(1))

    first, _, third = together(add)
    for error in (first, third):
        assert isinstance(error, RankLost) and str(error).startswith("rank 4 did not come to step 2 (")


def test_ranks_are_named_for_people():
    assert named([2]) == "rank 2" and named([0, 1]) == "ranks 0, 1" and named([5, 1, 2, 3]) == "ranks 1-3, 5"


def test_process_alone_has_no_group_and_may_not_be_given_one():
    assert group_of() is None
    check_process_group(None)
    with pytest.raises(ValueError, match="torch.distributed is not initialised"):
        check_process_group(object())


def test_vectors_lie_on_the_cpu_whatever_the_script_has_chosen():
    with torch.device("meta"):
        assert zeros(2).tolist() == [0.0, 0.0]
