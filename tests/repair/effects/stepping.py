"""A run under a plan, told of by the join points, and what it leaves behind."""

import copy
import gc
import weakref
from contextlib import contextmanager

import torch

from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.repair.effects.change import Change

_OPTIMIZERS = weakref.WeakKeyDictionary()


class Listener:
    """Passes everything on to a change, and counts what else it is told of."""

    def __init__(self, plan):
        self.change = Change(plan)
        self.joinpoints = JoinPoints(self)
        self.built, self.clips, self.verdicts = 0, 0, []

    def optimizer_built(self, optimizer):
        self.built += 1
        self.change.optimizer_built(optimizer)

    def clipped(self, params, max_norm):
        self.clips += 1

    def graph(self, roots, values):
        self.change.backward(roots, values)

    @torch.no_grad()
    def before_step(self, optimizer):
        self.verdicts.append(self.change.before_step(optimizer))
        return self.verdicts[-1] == "take"

    @torch.no_grad()
    def after_step(self, optimizer, applied):
        self.change.after_step(optimizer, applied or self.verdicts[-1] == "taken")

    def step_raised(self, optimizer):
        self.change.undo_step()

    def scheduler_built(self, scheduler): ...
    def scaler_seen(self, scaler): ...
    def backward(self, roots): ...
    def amp_skipped(self, optimizer, scaler): ...


@contextmanager
def upon(plan):
    """Every optimizer that there is, or is built inside, runs under this plan; models may be older than it.

    Tests that use it need the fixture ``apart``.
    """
    listener = Listener(plan)
    listener.change.install()
    listener.joinpoints.install(all_optimizers=True)
    try:
        yield listener
    finally:
        listener.joinpoints.remove()
        listener.change.remove()


@contextmanager
def under(plan):
    """Every optimizer built inside runs under this plan."""
    gc.collect()  # models are looked for among all objects of the process: leave those of the test runner out
    gc.freeze()
    with upon(plan) as listener:
        yield listener


def trains(model):
    """Give the model an optimizer that lives as long as the model does."""
    _OPTIMIZERS[model] = torch.optim.SGD(model.parameters(), lr=0.1)
    return _OPTIMIZERS[model]


def leavings(model, optimizer):
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "rng": torch.get_rng_state(),
    }
