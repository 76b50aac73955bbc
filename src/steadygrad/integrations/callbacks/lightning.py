"""A callback for Lightning: watches, guards and repairs ``Trainer.fit``.

Example::

    from steadygrad.integrations.callbacks.lightning import SteadyCallback

    trainer = lightning.Trainer(callbacks=[SteadyCallback()])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from steadygrad.integrations.callbacks.watching import Watching
from steadygrad.integrations.loop import Watcher


def _callback_class() -> Any:
    """Lightning's, under either of its names; a plain object where neither is installed."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    return object


Callback = _callback_class()


class SteadyCallback(Callback):  # type: ignore[misc, valid-type]
    """Watch a Lightning training. A rollback is followed by trials of remedies on the next batches.

    Args:
        guard: ``on`` acts, ``warn`` says what it sees, ``off`` records.
        repair: ``live`` or ``off``.
        runs: folder of the run directories.
        name: of the run.

    Raises:
        ImportError: Lightning is not installed.
    """

    def __init__(
        self,
        *,
        guard: Literal["off", "warn", "on"] = "on",
        repair: Literal["off", "live"] = "live",
        runs: str = "runs",
        name: str | None = None,
    ) -> None:
        if Callback is object:
            raise ImportError("SteadyCallback needs Lightning: pip install lightning")
        super().__init__()
        self._watching = Watching(guard=guard, repair=repair, runs=runs, name=name)

    @property
    def run(self) -> Watcher | None:
        """The run of the newest training; None before the first."""
        return self._watching.run

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._watching.begin(pl_module, trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._watching.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._watching.end(exception)
