"""Who listens to this process: the connections in order, and the one that each optimizer's steps belong to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

if TYPE_CHECKING:
    from steadygrad.probe.joinpoints import JoinPoints

connected: list[JoinPoints] = []
owners: WeakKeyDictionary[Optimizer, JoinPoints] = WeakKeyDictionary()
_forked: list[bool] = []


def in_forked_child() -> bool:
    """Whether this process was forked from the one that imported us: it is no part of the run."""
    return bool(_forked)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.append(True))


def listening() -> list[JoinPoints]:
    """The connections that are to be told of what happens now."""
    return [j for j in connected if j.here]


def at_step(optimizer: Optimizer) -> JoinPoints | None:
    """The connection that a step of this optimizer, beginning or ending now, is told to."""
    owner = owners.get(optimizer)
    return owner if owner is not None and not owner.inside and owner.here else None
