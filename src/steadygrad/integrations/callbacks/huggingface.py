"""A callback for Hugging Face's Trainer: watches, guards and repairs ``Trainer.train``.

Example::

    from steadygrad.integrations.callbacks.huggingface import SteadyCallback

    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[SteadyCallback()])
"""

from __future__ import annotations

import base64
import binascii
import gc
import io
import logging
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from steadygrad.integrations.callbacks.control import careful
from steadygrad.integrations.callbacks.versions import check_major, framework_class
from steadygrad.integrations.callbacks.watching import Watching

Callback = framework_class("transformers", name="TrainerCallback")
Exportable: Any = framework_class("transformers.trainer_callback", name="ExportableState")
Bases: Any = type("Bases", (Callback, Exportable) if Exportable is not object else (), {})
MAJOR = 5


class SteadyCallback(Watching, Bases):  # type: ignore[misc]
    """Watch a training by the Trainer. A rollback is followed by trials of remedies on the next batches.

    Takes what :class:`~steadygrad.integrations.callbacks.watching.Watching` takes; ``run`` is the run of the newest
    training, None before the first. Its state is in ``trainer_state.json`` of the trainer's checkpoints;
    ``train(resume_from_checkpoint=...)`` goes on with it. Norm, skipped steps and incidents go wherever the trainer
    logs. An exception that ends the training is not told to callbacks; call :meth:`close` then.
    """

    lacks: ClassVar[str] = (
        "SteadyCallback needs transformers: pip install 'transformers[torch]'" if Callback is object else ""
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_major(Callback, MAJOR, "the transformers that is installed")
        self.saved = ""  # the state of a checkpoint, as text

    # ------------------------------------------------------------------ the course of a training
    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **more: Any
    ) -> Any:
        self._go_before_reporters()
        self.begin(model, [optimizer])
        kept = state.stateful_callbacks.setdefault(type(self).__name__, {"args": {}, "attributes": {}})
        saved = (kept[0] if isinstance(kept, list) else kept)["attributes"].get("saved") or ""
        if state.global_step and saved:
            place = (
                "the position in the data was not restored: ignore_data_skip is set"
                if args.ignore_data_skip
                else ""
            )
            self.resume(_from_text(saved), rng=False, place=place)  # the Trainer puts generators back itself
        elif state.global_step:
            self.resume_without()
        return careful(control, self.may_save)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if self._running and logs is not None:
            logs.update(self._telling.numbers)
            if state.log_history:
                state.log_history[-1].update(self._telling.numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. Can be called again."""
        self.end()

    # ------------------------------------------------------------------ checkpoints
    def state(self) -> dict[str, Any]:
        """For ``trainer_state.json``."""
        sinks = [sink for sink in self._options["sink"] if isinstance(sink, str)]
        saved = self.saved_state()
        return {
            "args": {**self._options, "sink": sinks},
            "attributes": {"saved": _as_text(saved) if saved else ""},
        }

    # ------------------------------------------------------------------ the trainer's logs
    def say(self, text: str) -> None:
        logging.getLogger("transformers.steadygrad").warning(text)

    def _go_before_reporters(self) -> None:
        """To the place behind the first of the trainer's callbacks: those that report come before the user's own, and
        would be given its logs without our numbers."""
        for holder in gc.get_referrers(self):
            if type(holder) is list and len(holder) > 1 and all(isinstance(c, Callback) for c in holder):
                holder.remove(self)
                holder.insert(1, self)


def _as_text(state: Mapping[str, Any]) -> str:
    file = io.BytesIO()
    torch.save(dict(state), file)
    return base64.b64encode(file.getvalue()).decode()


def _from_text(text: str) -> Any:
    """The state; what is no such text is no state of a watcher, which is said when it is to be resumed."""
    try:
        return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    except (ValueError, RuntimeError, EOFError, OSError, binascii.Error, pickle.UnpicklingError):
        return None
