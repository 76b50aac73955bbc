"""A callback for Hugging Face's Trainer: watches, guards and repairs ``Trainer.train``.

Example::

    from steadygrad.integrations.callbacks.huggingface import SteadyCallback

    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[SteadyCallback()])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from steadygrad.integrations.callbacks.watching import Watching
from steadygrad.integrations.loop import Watcher


def _callback_class() -> Any:
    """Transformers', or a plain object where it is not installed."""
    try:
        return import_module("transformers").TrainerCallback
    except ImportError:
        return object


Callback = _callback_class()


class SteadyCallback(Callback):  # type: ignore[misc, valid-type]
    """Watch a training by the Trainer. A rollback is followed by trials of remedies on the next batches.

    An exception that ends the training is not told to callbacks; call :meth:`close` then.

    Args:
        guard: ``on`` acts, ``warn`` says what it sees, ``off`` records.
        repair: ``live`` or ``off``.
        runs: folder of the run directories.
        name: of the run.

    Raises:
        ImportError: transformers is not installed.
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
            raise ImportError("SteadyCallback needs transformers: pip install 'transformers[torch]'")
        super().__init__()
        self._watching = Watching(guard=guard, repair=repair, runs=runs, name=name)

    @property
    def run(self) -> Watcher | None:
        """The run of the newest training; None before the first."""
        return self._watching.run

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **more: Any
    ) -> None:
        self._watching.begin(model, [optimizer])

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. Can be called again."""
        self._watching.end()
