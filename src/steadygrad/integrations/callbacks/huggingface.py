"""A callback for Hugging Face's Trainer: watches, guards and repairs ``Trainer.train``.

Example::

    from steadygrad.integrations.callbacks.huggingface import SteadyCallback

    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[SteadyCallback()])
"""

from __future__ import annotations

from typing import Any, ClassVar

from steadygrad.integrations.callbacks.watching import Watching, callback_class

Callback = callback_class("transformers", name="TrainerCallback")


class SteadyCallback(Watching, Callback):  # type: ignore[misc, valid-type]
    """Watch a training by the Trainer. A rollback is followed by trials of remedies on the next batches.

    Takes what :class:`~steadygrad.integrations.callbacks.watching.Watching` takes; ``run`` is the run of the newest
    training, None before the first. An exception that ends the training is not told to callbacks; call :meth:`close`
    then.
    """

    lacks: ClassVar[str] = (
        "SteadyCallback needs transformers: pip install 'transformers[torch]'" if Callback is object else ""
    )

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **more: Any
    ) -> None:
        self.begin(model, [optimizer])

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. Can be called again."""
        self.end()
