"""What a change in force can do, and when it is asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

Step = Literal["take", "skip", "taken"]
"""What becomes of an optimizer's step: the user's is taken, none is, or the effect has taken one in its place."""


class NotApplicable(Exception):
    """This change cannot be put in force on this run; the message says why, for people."""


@dataclass(frozen=True)
class Models:
    """The models that are trained.

    ``modules`` has every module by its path, wrappers left out; with several roots (a GAN) paths have the prefixes
    of :func:`steadygrad.probe.names.named_roots`. Names of parameters in a portrait are ``path.parameter``.
    """

    roots: tuple[nn.Module, ...] = ()
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    optimizers: tuple[Optimizer, ...] = ()


class Effect:
    """One key of a plan at work on a run. Every method may be left as it is.

    The order of calls: :meth:`install`; then, for each model, :meth:`models` before its first forward pass; then at
    each step :meth:`backward` (once or more), :meth:`before_step`, the optimizer's step, :meth:`after_step`; at last
    :meth:`remove`. An effect that decides nothing changes no bit. What it draws at random comes from a generator of
    its own. Errors: :class:`NotApplicable` from ``__init__``, ``install`` and ``models`` for what it will not do.

    Class attributes:
        key: its key in a plan.
        order: effects of a lower one are asked first; 10 skip, 20 clip, 30 rates, 40 the optimizer's place.
        eager: it does not reach into compiled code; the run must have TORCH_COMPILE_DISABLE=1.
    """

    key: ClassVar[str]
    order: ClassVar[int] = 50
    eager: ClassVar[bool] = False

    def __init__(self, value: Any) -> None:
        """``value``: of the key in the plan, as JSON gives it back."""

    def install(self) -> None:
        """Torch has just been imported: global hooks and modes are entered here."""

    def models(self, models: Models) -> None:
        """An optimizer has been built and its models are about to run forward for the first time.

        Called again, with all of them, if later optimizers bring further models.
        """

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """A backward pass is about to begin on ``roots``, which have their graph; ``values``: unscaled, without one."""

    def before_step(self, optimizer: Optimizer) -> Step:
        """The gradients are there and the user's step is called. "skip" ends the asking, and so does "taken"."""
        return "take"

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        """The step is over; ``applied``: it was taken, by the user's optimizer or in its place."""

    def undo_step(self) -> None:
        """Put back what was changed for this step alone. Also called if the step has raised, and then it is all."""

    def remove(self) -> None:
        """Take every hook and mode away. Can be called again."""
