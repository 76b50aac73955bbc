"""Before the first step the ranks of a group tell each other how they watch, and what of the model lies where.

By the store of ``torch.distributed``, which waits for no longer than it is told: a rank that does not come is named,
and no collective of the user's can be mistaken for ours.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from steadygrad.integrations.ranks.group import Group, RankLost, RanksDiffer, named

TIMEOUT = 120.0  # seconds that a rank is waited for
ROLL_CALL = 3.0  # seconds that the others have to say that they are there
_groups: Counter[tuple[int, ...]] = Counter()  # of this process, so that two of the same ranks are told apart


@dataclass(frozen=True, slots=True)
class Tables:
    """What all ranks know of each other after a meeting.

    Attributes:
        keys: of all sharded parameters of the group, in the order in which their norms are added up.
        held: for each rank of the group the positions in ``keys`` of those that it has a part of.
    """

    keys: tuple[str, ...]
    held: tuple[frozenset[int], ...]


class Meeting:
    """The place where the ranks of a group meet: once at their first step, and again when their models have changed.

    Args:
        group: who meets. Every rank of it has to make as many meetings of this group, in the same order.
        timeout: seconds that a rank is waited for.
        store: where they leave word; that of ``torch.distributed`` if None.
    """

    def __init__(self, group: Group, timeout: float | None = None, store: dist.Store | None = None) -> None:
        self._group = group
        self._timeout = timedelta(seconds=TIMEOUT if timeout is None else timeout)
        self._held = 0
        self._left = False
        number = _groups[group.ranks]
        _groups[group.ranks] += 1
        members = "-".join(map(str, group.ranks)) if len(group.ranks) < 64 else str(hash(group.ranks))
        prefix = f"steadygrad/{members}/{number}"
        self.store = dist.PrefixStore(prefix, _get_default_store() if store is None else store)

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def meet(self, settings: Mapping[str, Any], shards: Mapping[str, Sequence[int]]) -> Tables:
        """Tell the others, and hear from them.

        Args:
            settings: how this rank watches: plain values, to be the same on all ranks.
            shards: key of each parameter that this rank has a part of -> the ranks that have the others.

        Raises:
            RanksDiffer: on all ranks: the settings are not the same, or a parameter lies on a rank outside the group.
            RankLost: on all ranks that came: some did not.
        """
        place, self._held = f"{self._held}", self._held + 1
        me = self._group.me
        self.store.set(f"{place}/said/{me}", json.dumps([settings, {k: list(r) for k, r in shards.items()}]))
        if me == 0:
            self.store.set(f"{place}/heard", json.dumps(self._gather(place)))
        # The first one has waited for all the others in turn: it may need as long again to say so.
        answer = json.loads(self._get(f"{place}/heard", 2 * self._timeout, [self._group.ranks[0]]))
        if "lost" in answer:
            raise RankLost(answer["lost"])
        if "differ" in answer:
            raise RanksDiffer(answer["differ"])
        kinds = [frozenset(kind) for kind in answer["kinds"]]
        return Tables(tuple(answer["keys"]), tuple(kinds[k] for k in answer["kind_of"]))

    def leave(self, reason: str) -> None:
        """Say why this rank takes no part any more, for those who will miss it. The first reason counts."""
        if self._left:
            return
        self._left = True
        try:
            self.store.set(f"left/{self._group.me}", reason)
        except RuntimeError:  # the store has gone as well
            pass

    def left(self) -> list[str]:
        """What those said who have left."""
        found = []
        for position, rank in enumerate(self._group.ranks):
            try:
                if self.store.check([f"left/{position}"]):
                    found.append(f"rank {rank} {self.store.get(f'left/{position}').decode()}")
            except RuntimeError:
                return found
        return found

    def missing(self, place: int) -> list[int]:
        """A roll call of those who have found at this place that somebody is missing: the ranks that do not answer."""
        try:
            return self._missing(place)
        except RuntimeError:  # the store has gone as well
            return []

    def _missing(self, place: int) -> list[int]:
        self.store.set(f"here/{place}/{self._group.me}", "")
        until = time.monotonic() + ROLL_CALL
        while True:
            gone = [
                rank
                for position, rank in enumerate(self._group.ranks)
                if not self.store.check([f"here/{place}/{position}"])
            ]
            if not gone or time.monotonic() > until:
                return gone
            time.sleep(0.05)

    def _gather(self, place: str) -> dict[str, Any]:
        """What the first rank tells all: its verdict over what everybody has said."""
        said = []
        for position, rank in enumerate(self._group.ranks):
            try:
                said.append(json.loads(self._get(f"{place}/said/{position}", self._timeout, [rank])))
            except RankLost as error:
                return {"lost": str(error)}
        differ = self._differ([settings for settings, _ in said]) or self._outside([s for _, s in said])
        if differ:
            return {"differ": differ}
        keys = sorted({key for _, shards in said for key in shards})
        position_of = {key: i for i, key in enumerate(keys)}
        kinds: list[list[int]] = []
        kind_of = []
        for _, shards in said:
            kind = sorted(position_of[key] for key in shards)
            if kind not in kinds:
                kinds.append(kind)
            kind_of.append(kinds.index(kind))
        return {"keys": keys, "kinds": kinds, "kind_of": kind_of}

    def _differ(self, settings: list[dict[str, Any]]) -> str:
        for name in settings[0]:
            by_value: dict[str, list[int]] = {}
            for rank, mine in zip(self._group.ranks, settings, strict=True):
                by_value.setdefault(repr(mine.get(name)), []).append(rank)
            if len(by_value) > 1:
                sides = " and ".join(f"{value} on {named(ranks)}" for value, ranks in by_value.items())
                return (
                    f"the ranks of one training watch it differently: {name} is {sides}. "
                    "Give every rank the same settings"
                )
        return ""

    def _outside(self, shards: list[dict[str, list[int]]]) -> str:
        for rank, mine in zip(self._group.ranks, shards, strict=True):
            for key, ranks in mine.items():
                missing = sorted(set(ranks) - set(self._group.ranks))
                if missing:
                    return (
                        f"process_group has {named(list(self._group.ranks))}, but {key.split('|')[1]} of rank {rank} "
                        f"is also sharded over {named(missing)}: pass a group that has all of them"
                    )
        return ""

    def _get(self, key: str, timeout: timedelta, ranks: list[int]) -> str:
        try:
            self.store.wait([key], timeout)
        except RuntimeError as error:
            seconds = self._timeout.total_seconds()
            raise RankLost(
                f"{named(ranks)} did not take part within {seconds:g} s. Watch on every rank, "
                "or say by process_group which ranks decide together"
            ) from error
        return self.store.get(key).decode()
