"""What the callbacks have in common: a watched run from the training's begin to its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from steadygrad.integrations.callbacks.saving import Saving
from steadygrad.integrations.callbacks.telling import Telling
from steadygrad.integrations.loop import Watcher, open_watcher
from steadygrad.integrations.watcher_state import put_state
from steadygrad.sinks import Sink, checked_sinks


class Watching:
    """Watches one training after the other; the base of the callbacks.

    Args:
        guard: as for :func:`steadygrad.watch`: ``on`` acts, ``warn`` says what it sees, ``off`` records. With ``on``
            a state that is not healthy is not saved by the trainer's own checkpoints, and so removes no good one.
        repair: as there, ``live`` or ``off``; ``live`` tries remedies on the batches that follow a rollback.
        runs: folder of the run directories.
        name: of the run.
        tier: how closely the probe looks, as there.
        sink: where else the numbers go, as there.

    Raises:
        ImportError: the framework of this callback is not installed, or is of another major version.
        ValueError: an unknown sink. When the training begins: an optimizer that somebody watches already.
    """

    lacks: ClassVar[str] = ""  # what is said in its error where the framework is not installed

    def __init__(
        self,
        *,
        guard: Literal["off", "warn", "on"] = "on",
        repair: Literal["off", "live"] = "live",
        runs: str = "runs",
        name: str | None = None,
        tier: Literal["cheap", "standard", "deep"] = "cheap",
        sink: str | Sink | Iterable[str | Sink] = (),
    ) -> None:
        if self.lacks:
            raise ImportError(self.lacks)
        super().__init__()
        self.run: Watcher | None = None  # of the newest training
        if guard != "on":
            repair = "off"  # it begins where the guard has rolled back
        self._options: dict[str, Any] = {
            "guard": guard,
            "repair": repair,
            "runs": runs,
            "name": name,
            "tier": tier,
            "sink": checked_sinks(sink),
        }
        self._telling = Telling(self.say)
        self._saving: Saving | None = None
        self._running = False
        self._last_state: dict[str, Any] = {}  # of a run that is over

    def say(self, text: str) -> None:
        """Put a line where the trainer's user will see it."""
        raise NotImplementedError

    def begin(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        """A training begins: watch these optimizers."""
        self.end()
        self._telling = Telling(self.say)
        door = f"{type(self).__name__} ({type(self).__module__.rpartition('.')[2]})"
        self.run = open_watcher(model, optimizers, door=door, observer=self._telling, **self._options)
        self._running = True
        self._saving = Saving(model, self.run._session._joinpoints.optimizers())
        self._telling.started(str(self.run.run_dir))

    def resume(self, state: Mapping[str, Any], *, rng: bool, place: str) -> None:
        """Go on where a checkpoint was saved. What does not fit is said, and the run begins anew.

        Args:
            state: that was in the checkpoint.
            rng: whether the generators are put back.
            place: why the place in the data is not that of the checkpoint, in a sentence; "" if it is.
        """
        assert self.run is not None
        try:
            put_state(self.run._session, state, rng=rng, place=place)
        except (ValueError, TypeError) as error:
            self.run._session.record.note(f"the watching of the checkpoint's run cannot go on: {error}")

    def resume_without(self) -> None:
        """The checkpoint that the trainer resumes from was saved without us."""
        assert self.run is not None
        self.run._session.record.note("the checkpoint holds no state of steadygrad: its history begins anew")

    def saved_state(self) -> dict[str, Any]:
        """What is to be in the trainer's checkpoint; empty before the first training."""
        return self.run.state_dict() if self.run is not None and self._running else self._last_state

    def may_save(self) -> bool:
        """The trainer is about to save a checkpoint: whether it should. A refusal is said."""
        if self._saving is None or self._options["guard"] == "off":
            return True
        try:
            reason = self._saving.refusal(self.run if self._running else None)
        except Exception as error:  # noqa: BLE001 - whatever we did wrong, the user's run must go on
            reason = None
            self._telling.note(f"the state was saved without a look at it ({type(error).__name__}: {error})")
        if reason is None:
            return True
        acts = self._options["guard"] == "on"
        self._telling.note(
            f"the checkpoint is not saved, and the ones before it stay: {reason}"
            if acts
            else f"a checkpoint is saved that is not healthy: {reason}"
        )
        return not acts

    def end(self, error: BaseException | None = None) -> None:
        """It is over. Can be called again."""
        if self.run is None or not self._running:
            return
        try:
            self._last_state = self.run.state_dict()  # the trainer may be asked to save once more
        except Exception as failure:  # noqa: BLE001 - whatever we did wrong, the user's run must end as it would
            self._last_state = {}
            self._telling.note(f"its state could not be kept ({type(failure).__name__}: {failure})")
        self._running = False
        self.run.__exit__(None if error is None else type(error), error, None)
