"""Begin an arm with the weights of a durable snapshot: the same weights, the next data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from steadygrad.guard.durable import latest_good
from steadygrad.guard.image import RestoreError
from steadygrad.guard.saved import SavedSnapshot
from steadygrad.guard.state import TrainingState, find_scalers, find_schedulers
from steadygrad.probe.names import find_optimizers, find_roots, named_roots
from steadygrad.repair.effects.effect import NotApplicable


class Resume:
    """Restores parameters, buffers, optimizers, schedulers and scalers before the first forward pass that trains.

    Random number generators stay as they are: the data are the script's own, from its beginning. What the script
    counts itself (epochs, an average of the weights) begins anew as well.

    Args:
        run_dir: of a guarded run of the same script.
        failed: called with a :class:`NotApplicable` if the snapshot does not fit.

    Raises:
        NotApplicable: the run has no sound snapshot.
    """

    def __init__(self, run_dir: str, *, failed: Callable[[Exception], None]) -> None:
        found = latest_good(Path(run_dir) / "snapshots")
        if found.snapshot is None:
            damaged = f" ({found.damaged[0][1]})" if found.damaged else ""
            raise NotApplicable(f"{run_dir} has no sound snapshot{damaged}: run it with the guard on")
        self._snapshot: SavedSnapshot = found.snapshot
        self._failed = failed
        self._handle: Any = register_module_forward_pre_hook(self._forward)

    @property
    def step(self) -> int:
        """At which the snapshot was taken."""
        return self._snapshot.step

    def _forward(self, module: nn.Module, args: Any) -> None:
        optimizers = find_optimizers()
        if not module.training or len(optimizers) < len(self._snapshot.image.optimizers):
            return
        self._handle.remove()
        try:
            self._restore(optimizers)
        except Exception as error:  # noqa: BLE001 - whatever we did wrong: an arm from elsewhere proves nothing
            self._failed(error)

    def _restore(self, optimizers: list[Optimizer]) -> None:
        roots = [
            root for _, root in named_roots(find_roots(), optimizers)
        ]  # as the run's own session names them
        state = TrainingState(roots, optimizers, find_schedulers(optimizers), find_scalers())
        try:
            restored = self._snapshot.restore_into(state, rng=False)
        except RestoreError as error:
            raise NotApplicable(str(error)) from None
        short = [*restored.missing, *restored.unknown, *restored.problems]
        if short:
            raise NotApplicable(f"the snapshot of step {self.step} does not cover the run: {short[0]}")
