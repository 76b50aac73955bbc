"""Optimizers and calls of our own that must not be taken for the user's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

from torch.optim import Optimizer

from steadygrad.probe.joinpoints import JoinPoints, Listener


def unseen(optimizer: Optimizer) -> AbstractContextManager[None]:
    """Inside the block no listener is told of what torch is asked to do. ``optimizer``: the one at its step."""
    return JoinPoints(cast(Listener, None)).alone(optimizer)  # never installed, so it never tells anybody
