"""A plan in force on a run that somebody watches: it gives itself up instead of raising in the user's loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.integrations.run_record import RunRecord
from steadygrad.integrations.script import BAD_INPUT
from steadygrad.records import Action
from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable, Step

T = TypeVar("T")


class NotInForce(SystemExit):
    """The prescription cannot be put in force: ends the script with exit code 2 before its first step."""

    def __init__(self, message: str) -> None:
        super().__init__(BAD_INPUT)
        self.message = message


def _careful(default: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """At the first error the change is taken away and the caller told; the loop gets ``default`` from then on."""

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def safe(self: CarefulChange, *args: Any, **kwargs: Any) -> T:
            if self.given_up is not None:
                return cast(T, default)
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever an effect did wrong
                self.give_up(error)
                return cast(T, default)

        return safe

    return decorate


class CarefulChange(Change):
    """A :class:`~steadygrad.repair.effects.change.Change` that takes itself away at its first error.

    What an effect has put into the model (hooks, modules) runs in the user's forward pass, where its errors are his.

    Args:
        plan: what is changed.
        failed: told of the error, when the change has been taken away. What it raises goes on to the user's loop.
        optimizers: those whose models are changed; None: every one of the process.

    Raises:
        NotApplicable: the plan cannot be put in force, as its values show already.
    """

    def __init__(
        self,
        plan: Mapping[str, Any],
        failed: Callable[[Exception], None],
        *,
        optimizers: Sequence[Optimizer] | None = None,
    ) -> None:
        super().__init__(plan, optimizers=optimizers)
        self.given_up: Exception | None = None  # the error for which it was taken away
        self._failed = failed

    def give_up(self, error: Exception) -> None:
        """Take the change away, and say why."""
        if self.given_up is not None:
            return
        self.given_up = error
        try:
            super().undo_step()
            super().remove()
        except Exception:  # noqa: BLE001 - already on the way out
            pass
        self._failed(error)

    install = _careful(None)(Change.install)
    optimizer_built = _careful(None)(Change.optimizer_built)
    backward = _careful(None)(Change.backward)
    after_step = _careful(None)(Change.after_step)
    undo_step = _careful(None)(Change.undo_step)

    @_careful(None)
    def _forward(self, module: nn.Module, args: Any) -> None:
        super()._forward(module, args)

    @_careful("take")
    def before_step(self, optimizer: Optimizer) -> Step:
        return super().before_step(optimizer)


class InForce:
    """Every change that is in force on a run, asked one after the other. None of them: nothing is done at all."""

    def __init__(self) -> None:
        self._changes: list[CarefulChange] = []
        self._taken: set[int] = set()  # ids of optimizers whose step a change has taken in its place

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._changes)

    def add(self, change: CarefulChange) -> None:
        """From now on this one as well."""
        self._changes.append(change)
        change.install()

    def drop(self, change: CarefulChange) -> None:
        """Take one of them away. Can be called again."""
        if change in self._changes:
            self._changes.remove(change)
        if change.given_up is None:
            change.undo_step()
            change.remove()

    def clear(self) -> None:
        """Take all of them away."""
        for change in self._changes[::-1]:
            self.drop(change)

    def optimizer_built(self, optimizer: Optimizer) -> None:
        for change in self._changes:
            change.optimizer_built(optimizer)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for change in self._changes:
            change.backward(roots, values)

    def before_step(self, optimizer: Optimizer) -> bool:
        """Whether the user's step is to be taken."""
        for change in self._changes:
            step = change.before_step(optimizer)
            if step == "taken":
                self._taken.add(id(optimizer))
            if step != "take":
                return False
        return True

    def after_step(self, optimizer: Optimizer, applied: bool) -> bool:
        """The step is over. Returns whether one was taken: the user's, or another in its place."""
        applied = applied or id(optimizer) in self._taken
        self._taken.discard(id(optimizer))
        for change in self._changes:
            change.after_step(optimizer, applied)
        return applied

    def undo_step(self) -> None:
        for change in self._changes:
            change.undo_step()


class Prescribed:
    """The prescription of a run: put in force, told, and refused where it cannot be.

    Args:
        prescription: what :func:`steadygrad.integrations.prescribed.read_prescription` found; None: there is none.
        in_force: where it is put.
        record: of the run.
    """

    def __init__(self, prescription: Mapping[str, Any] | None, in_force: InForce, record: RunRecord) -> None:
        self._prescription, self._in_force, self._record = prescription, in_force, record
        self._change: CarefulChange | None = None
        self._refused: str | None = None
        self._said = False

    @property
    def active(self) -> bool:
        """Whether one is in force."""
        return self._change is not None and self._change.given_up is None

    def put(self) -> None:
        """Torch has been imported.

        Raises:
            NotInForce: it cannot be put in force.
        """
        if self._prescription is None:
            return
        try:
            self._change = CarefulChange(self._prescription["plan"], self._lost)
        except NotApplicable as error:
            self._lost(error)
            return
        self._in_force.add(self._change)

    def check(self) -> None:
        """Before each step: a script that has swallowed the refusal is told again."""
        if self._refused is not None:
            raise NotInForce(self._refused)

    def say(self) -> None:
        """The first step has been taken under it."""
        if self.active and not self._said and self._prescription is not None:
            self._said = True
            reason = (
                f"the prescription {self._prescription['name']} is in force ({self._prescription['file']})"
            )
            self._record.action(Action(0, "remedy", reason, ""))

    def _lost(self, error: Exception) -> None:
        """It is not in force any more. Before the first step that ends the run: nothing is lost yet."""
        why = str(error) if isinstance(error, NotApplicable) else f"{type(error).__name__}: {error}"
        if self._record.steps == 0:
            self._refused = (
                "the prescription cannot be put in force, "
                f"so the run was stopped before its first step: {why}"
            )
            self._record.note(self._refused)
            raise NotInForce(self._refused)
        self._record.note(
            f"the prescription can no longer be kept in force and was taken away; the run goes on without it ({why})"
        )
