"""A callback for Lightning: watches, guards and repairs ``Trainer.fit``.

Example::

    from steadygrad.integrations.callbacks.lightning import SteadyCallback

    trainer = lightning.Trainer(callbacks=[SteadyCallback()])
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, ClassVar

from steadygrad.integrations.callbacks.versions import check_major, framework_class
from steadygrad.integrations.callbacks.watching import Watching

Callback = framework_class("lightning.pytorch", "pytorch_lightning", name="Callback")
MAJOR = 2
SAVES = ("_save_topk_checkpoint", "_save_last_checkpoint", "_save_checkpoint")
"""Methods of ``ModelCheckpoint`` that save, and then remove what the new file takes the place of."""


class SteadyCallback(Watching, Callback):  # type: ignore[misc, valid-type]
    """Watch a Lightning training. A rollback is followed by trials of remedies on the next batches.

    Takes what :class:`~steadygrad.integrations.callbacks.watching.Watching` takes; ``run`` is the run of the newest
    training, None before the first. Its state is in the trainer's checkpoints; ``Trainer.fit(ckpt_path=...)`` goes on
    with it. Norm, skipped steps and incidents go to the trainer's logger and its bar.
    """

    lacks: ClassVar[str] = (
        "SteadyCallback needs Lightning: pip install lightning" if Callback is object else ""
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_major(Callback, MAJOR, "the Lightning that is installed")
        self._trainer: Any = None
        self._to_resume: Mapping[str, Any] | None = None
        self._wrapped: list[tuple[Any, str]] = []

    # ------------------------------------------------------------------ the course of a training
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        check_major(type(trainer), MAJOR, "this Trainer")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._trainer = trainer
        self.begin(pl_module, trainer.optimizers)
        if self._to_resume is not None:
            state, self._to_resume = self._to_resume, None
            self.resume(state, rng=True, place=_place(trainer))
        elif trainer.ckpt_path is not None:
            self.resume_without()
        self._protect(trainer.checkpoint_callbacks)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._telling.numbers:
            pl_module.log_dict(self._telling.numbers, prog_bar=True, on_step=True, on_epoch=False)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.end()
        for callback, name in self._wrapped:
            callback.__dict__.pop(name, None)
        self._wrapped, self._trainer = [], None

    # ------------------------------------------------------------------ checkpoints
    def state_dict(self) -> dict[str, Any]:
        """For the trainer's checkpoint."""
        return self.saved_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The trainer resumes from a checkpoint: it is gone on with when the training begins."""
        self._to_resume = state_dict or None

    def _protect(self, checkpoints: list[Any]) -> None:
        for callback in checkpoints:
            for name in SAVES:
                save = getattr(callback, name, None)
                if save is not None and name not in vars(callback):
                    setattr(callback, name, self._asked_first(save))
                    self._wrapped.append((callback, name))

    def _asked_first(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(save)
        def asked(*args: Any, **kwargs: Any) -> Any:
            return save(*args, **kwargs) if self.may_save() else None

        return asked

    # ------------------------------------------------------------------ the bar
    def say(self, text: str) -> None:
        trainer = self._trainer
        if trainer is not None and not trainer.is_global_zero:
            return
        bar = trainer.progress_bar_callback if trainer is not None else None
        if bar is not None and bar.is_enabled:
            bar.print(text)
        else:
            logging.getLogger("lightning.pytorch.steadygrad").warning(text)


def _place(trainer: Any) -> str:
    """Why a resumed training does not go on with the sample that was next; "" if it does."""
    if not trainer.fit_loop.restarted_mid_epoch or all(map(_has_place, _loaders(trainer.train_dataloader))):
        return ""
    return (
        "the position in the data was not restored: the checkpoint was saved within an epoch, and Lightning begins the "
        "data anew for a loader without state_dict; steadygrad.schedule.ResumableLoader has one"
    )


def _loaders(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for item in given:
            yield from _loaders(item)
    else:
        yield given


def _has_place(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
