"""Plans that come upon models which exist already. Tests that use them need the fixture ``apart``."""

import weakref
from contextlib import contextmanager

import torch
from torch import nn

from tests.repair.effects.stepping import Listener

_OPTIMIZERS = weakref.WeakKeyDictionary()


@contextmanager
def under(plan):
    """Every optimizer that there is, or is built inside, runs under this plan; models may be older than it."""
    listener = Listener(plan)
    listener.change.install()
    listener.joinpoints.install(all_optimizers=True)
    try:
        yield listener
    finally:
        listener.joinpoints.remove()
        listener.change.remove()


def trains(model: nn.Module) -> torch.optim.Optimizer:
    """Give the model an optimizer that lives as long as the model does."""
    _OPTIMIZERS[model] = torch.optim.SGD(model.parameters(), lr=0.1)
    return _OPTIMIZERS[model]
