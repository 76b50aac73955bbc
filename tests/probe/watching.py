"""A listener that hands all it is told to a probe, and keeps what it was told and what the probe has read."""

from __future__ import annotations

from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.probe import Probe


class Watching:
    """Inside the block the steps of one optimizer are watched; every one is allowed."""

    def __init__(self, model, optimizer):
        self.probe = Probe([model])
        self.records, self.calls, self.scalers = [], [], []
        self._join, self._optimizer = JoinPoints(self), optimizer

    def __enter__(self):
        self._join.install(all_optimizers=False)
        self._join.attach(self._optimizer)
        self.probe.optimizer_index(self._optimizer)
        return self

    def __exit__(self, *_):
        self._join.remove()
        self.probe.close()

    def backward(self, roots):
        self.probe.saw_backward(roots)

    def graph(self, roots, values): ...

    def optimizer_built(self, optimizer): ...

    def scaler_seen(self, scaler):
        self.probe.saw_scaler(scaler)

    def clipped(self, params, max_norm):
        self.calls.append("clip")
        self.probe.saw_clip(params, max_norm)

    def amp_skipped(self, optimizer, scaler):
        self.calls.append("amp")
        self.scalers.append(scaler)
        self.probe.saw_amp_skip(optimizer)

    def before_step(self, optimizer):
        self.stats = self.probe.before(optimizer)
        return True

    def after_step(self, optimizer, applied):
        self.calls.append("step" if applied else "skip")
        self.records.append(self.probe.after(optimizer, self.stats, applied))

    def step_raised(self, optimizer):
        self.probe.step_raised()
