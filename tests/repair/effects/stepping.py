"""A run under a plan, told of by the join points, and what it leaves behind."""

import copy
import gc
from contextlib import contextmanager

import torch
from torch import Tensor

from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.repair.effects.change import Change


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
def under(plan):
    """Every optimizer built inside runs under this plan."""
    gc.freeze()  # models are looked for among all objects of the process: leave those of the test runner out
    listener = Listener(plan)
    listener.change.install()
    listener.joinpoints.install(all_optimizers=True)
    try:
        yield listener
    finally:
        listener.joinpoints.remove()
        listener.change.remove()
        gc.unfreeze()


def leavings(model, optimizer):
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "rng": torch.get_rng_state(),
    }


def differences(a, b, path=""):
    """Where two results are not equal bit for bit; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")
        ]
    return [] if a == b or (a != a and b != b) else [path]
