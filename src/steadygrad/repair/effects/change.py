"""A plan in force: its effects, told of a run in the order in which they must act."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from steadygrad.probe.names import find_roots, flat_params, named_roots, walk
from steadygrad.repair.effects import EFFECTS
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable, Step


class Change:
    """Carries out a plan on whatever is trained in this process. An empty plan does nothing at all.

    Args:
        plan: what is changed.
        more: further effects that only look on (surveyors); they are told of everything, before the plan's own.
        optimizers: those whose models are changed; None: every one of the process.

    Raises:
        NotApplicable: the plan has a key that is not known, or a value that an effect cannot use.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> change = Change({"lr_factor": 0.1})
        >>> change.before_step(optimizer), optimizer.param_groups[0]["lr"]
        ('take', 0.1)
        >>> change.after_step(optimizer, True)
        >>> optimizer.param_groups[0]["lr"]
        1.0
    """

    def __init__(
        self,
        plan: Mapping[str, Any],
        *,
        more: Sequence[Effect] = (),
        optimizers: Sequence[Optimizer] | None = None,
    ) -> None:
        unknown = [key for key in plan if key not in EFFECTS]
        if unknown:
            raise NotApplicable(
                f"this plan needs {unknown[0]!r}, which this version of steadygrad does not know"
            )
        own = sorted((EFFECTS[key](value) for key, value in plan.items()), key=lambda e: e.order)
        self._effects: list[Effect] = [*more, *own]
        self._seen = [weakref.ref(o) for o in optimizers or ()]
        self._all = optimizers is None
        self._met: set[int] = set()
        self._news = bool(self._seen)
        self._handle: Any = None

    @property
    def active(self) -> bool:
        return bool(self._effects)

    def install(self) -> None:
        """Torch has been imported."""
        if not self._effects:
            return
        self._handle = register_module_forward_pre_hook(self._forward)  # type: ignore[arg-type]
        for effect in self._effects:
            effect.install()

    def remove(self) -> None:
        """Take everything away. Can be called again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for effect in reversed(self._effects):
            effect.remove()

    def optimizer_built(self, optimizer: Optimizer) -> None:
        """One more: its models are met when they run forward."""
        if self._all:
            self._seen.append(weakref.ref(optimizer))
            self._news = True

    def forget(self) -> None:
        """The optimizers that were built so far belong to other trainings of this process."""
        self._seen, self._news = [], False

    def _forward(self, module: nn.Module, args: Any) -> None:
        if self._news:
            self._news = False
            self._meet()

    def _meet(self) -> None:
        """Tell of the models that are trained, if there are new ones."""
        optimizers = [o for ref in self._seen if (o := ref()) is not None]
        trained = {id(p) for optimizer in optimizers for p in flat_params(optimizer)}
        live = [root for root in find_roots() if any(id(p) in trained for p in root.parameters())]
        roots = named_roots(live, optimizers)
        if all(id(root) in self._met for _, root in roots):
            return
        self._met |= {id(root) for _, root in roots}
        modules = {f"{prefix}{path}".rstrip("."): m for prefix, root in roots for path, m in walk(root)}
        models = Models(tuple(root for _, root in roots), modules, tuple(optimizers))
        for effect in self._effects:
            effect.models(models)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """A backward pass is about to begin on ``roots``, which have their graph."""
        for effect in self._effects:
            effect.backward(roots, values)

    def before_step(self, optimizer: Optimizer) -> Step:
        """What becomes of the step that the user has called."""
        for effect in self._effects:
            verdict = effect.before_step(optimizer)
            if verdict != "take":
                return verdict
        return "take"

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        """The step is over; what was changed for it alone is put back."""
        self.undo_step()
        for effect in self._effects:
            effect.after_step(optimizer, applied)

    def undo_step(self) -> None:
        for effect in reversed(self._effects):
            effect.undo_step()
