"""What the callbacks have in common: a watched run from the training's begin to its end."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal

from torch import nn

from steadygrad.integrations.loop import Watcher, watch


def callback_class(*modules: str, name: str) -> Any:
    """The framework's class, from the first of these modules that is installed; a plain object where none is."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ImportError:
            continue
    return object


class Watching:
    """Watches one training after the other; the base of the callbacks.

    Args:
        guard: as for :func:`steadygrad.watch`: ``on`` acts, ``warn`` says what it sees, ``off`` records.
        repair: as there, ``live`` or ``off``; ``live`` tries remedies on the batches that follow a rollback.
        runs: folder of the run directories.
        name: of the run.

    Raises:
        ImportError: the framework of this callback is not installed.
    """

    lacks: ClassVar[str] = ""  # what is said in its error where the framework is not installed

    def __init__(
        self,
        *,
        guard: Literal["off", "warn", "on"] = "on",
        repair: Literal["off", "live"] = "live",
        runs: str = "runs",
        name: str | None = None,
    ) -> None:
        if self.lacks:
            raise ImportError(self.lacks)
        super().__init__()
        self.run: Watcher | None = None  # of the newest training
        if guard != "on":
            repair = "off"  # it begins where the guard has rolled back
        self._options: dict[str, Any] = {"guard": guard, "repair": repair, "runs": runs, "name": name}

    def begin(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        """A training begins: watch these optimizers, or those that Accelerate's wrappers of them hold."""
        self.end()
        self.run = watch(model, *(getattr(o, "optimizer", o) for o in optimizers), **self._options)

    def end(self, error: BaseException | None = None) -> None:
        """It is over. Can be called again."""
        if self.run is not None:
            self.run.__exit__(None if error is None else type(error), error, None)
