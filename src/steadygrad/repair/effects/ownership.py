"""``own_parameters``: the optimizer is given the parameters of the model that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.repair.effects._owners import Owners, Unowned
from steadygrad.repair.effects._unseen import unseen
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable, Step

Kept = list[tuple[list[Tensor], list[str]]]  # tensors and, where they have some, names of each group


class OwnParameters(Effect):
    """Parameters that get a gradient while no optimizer holds them are given to the one that should.

    Args:
        value: 1.

    Of a copy of the model, or of layers put in the place of others after the optimizer was built, each takes the place
    of its forerunner in the groups: as if the optimizer had been built last. What was forgotten goes to the optimizer
    of the same model, or to the only one: to the end of the group that has most of the optimizer's own settings, of
    those that hold a tensor with as many axes (no decay for a bias where biases have none).

    Done before the backward pass, in the first 20 of a run. Models that no gradient reaches (targets, averages),
    frozen parameters, forgotten layers in evaluation mode and optimizers of plain tensors are left alone, and so is an
    optimizer whose own tensors are found to have gradients at its step (master weights).
    """

    key: ClassVar[str] = "own_parameters"
    order: ClassVar[int] = 4

    def __init__(self, value: Any) -> None:
        if value != 1:
            raise NotApplicable(
                f"own_parameters is 1 or not there, got {value!r}: leave it out or set it to 1"
            )
        self._owners = Owners()
        self._kept: WeakKeyDictionary[Optimizer, Kept] = WeakKeyDictionary()
        self._replaced: WeakKeyDictionary[Optimizer, list[Tensor]] = WeakKeyDictionary()

    def models(self, models: Models) -> None:
        self._owners.tell(models.optimizers)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for unowned in self._owners.look(roots):
            self._give(unowned)

    def before_step(self, optimizer: Optimizer) -> Step:
        replaced = self._replaced.pop(optimizer, ())
        alive = [p for p in replaced if p.grad is not None]
        if alive:
            self._take_back(optimizer)
        if not all(self._owners.saw(p) for p in alive):  # somebody makes their gradients by hand
            self._owners.stop()
        return "take"

    def remove(self) -> None:
        for optimizer in list(self._kept):
            self._take_back(optimizer)

    def _give(self, unowned: Unowned) -> None:
        optimizer = unowned.optimizer
        groups = optimizer.param_groups
        self._kept.setdefault(
            optimizer, [(list(g["params"]), list(g.get("param_names", ()))) for g in groups]
        )
        if unowned.old:
            now = {id(old): new for old, new in zip(unowned.old, unowned.new, strict=True)}
            for group in groups:
                group["params"][:] = [now.get(id(p), p) for p in group["params"]]
            self._replaced.setdefault(optimizer, []).extend(unowned.old)
        else:
            names = {id(p): name for name, p in unowned.root.named_parameters()}
            for p in unowned.new:
                group = _home(optimizer, p)
                group["params"].append(p)
                if "param_names" in group:
                    group["param_names"].append(names[id(p)])
        _renew(optimizer, unowned.old, unowned.new)

    def _take_back(self, optimizer: Optimizer) -> None:
        """The groups are as the user has made them; one that was added since stays."""
        before = self._kept.pop(optimizer)
        own = {id(p) for tensors, _ in before for p in tensors}
        added = [p for g in optimizer.param_groups[: len(before)] for p in g["params"] if id(p) not in own]
        for group, (tensors, names) in zip(optimizer.param_groups, before, strict=False):
            group["params"][:] = tensors
            if "param_names" in group:
                group["param_names"][:] = names
        _renew(optimizer, added, [p for tensors, _ in before for p in tensors if p not in optimizer.state])


def _home(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The group that a forgotten parameter belongs to."""
    groups = optimizer.param_groups
    alike = [g for g in groups if any(p.dim() == parameter.dim() for p in g["params"])]
    return max(alike or groups, key=lambda group: _usual(optimizer, group))


def _usual(optimizer: Optimizer, group: dict[str, Any]) -> int:
    """How many settings of a group are the optimizer's own."""
    first = {**group, "lr": group.get("initial_lr", group.get("lr"))}  # a schedule moves all groups
    return sum(bool(first.get(key) == value) for key, value in optimizer.defaults.items())


def _renew(optimizer: Optimizer, gone: Sequence[Tensor], come: Sequence[Tensor]) -> None:
    """State of tensors that are gone goes with them; the new have what a new optimizer would have."""
    for p in gone:
        optimizer.state.pop(p, None)
    if hasattr(optimizer, "_numel_cache"):  # LBFGS: one state for all, of so many numbers
        optimizer._numel_cache = None
        optimizer.state.clear()
    if isinstance(optimizer, torch.optim.Adagrad) and come:  # it makes its state when it is built
        with unseen(optimizer):
            fresh = torch.optim.Adagrad(list(come), **optimizer.defaults)
        optimizer.state.update(fresh.state)
