"""A callback for Lightning: watches, guards and repairs ``Trainer.fit``.

Example::

    from steadygrad.integrations.callbacks.lightning import SteadyCallback

    trainer = lightning.Trainer(callbacks=[SteadyCallback()])
"""

from __future__ import annotations

from typing import Any, ClassVar

from steadygrad.integrations.callbacks.watching import Watching, callback_class

Callback = callback_class("lightning.pytorch", "pytorch_lightning", name="Callback")


class SteadyCallback(Watching, Callback):  # type: ignore[misc, valid-type]
    """Watch a Lightning training. A rollback is followed by trials of remedies on the next batches.

    Takes what :class:`~steadygrad.integrations.callbacks.watching.Watching` takes; ``run`` is the run of the newest
    training, None before the first.
    """

    lacks: ClassVar[str] = (
        "SteadyCallback needs Lightning: pip install lightning" if Callback is object else ""
    )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begin(pl_module, trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.end(exception)
