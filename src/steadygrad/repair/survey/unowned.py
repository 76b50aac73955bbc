"""Parameters that get a gradient and are in no optimizer: of a copy of the model, or forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import ref

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.locating.frames import frames, owner
from steadygrad.repair.effects._owners import Owners, Unowned, held
from steadygrad.repair.effects.effect import Models, Step
from steadygrad.repair.survey.sites import Place, named_modules, place_of
from steadygrad.repair.survey.surveyor import Surveyor

SHOWN = 8  # paths and shapes


class UnownedParameters(Surveyor):
    """Looks at the graphs of the first 20 backward passes.

    ``found()`` has ``models``, a dict for each model with such parameters; nothing if all have an optimizer by then:

    * ``kind``: "copy" (the optimizer holds as many of the same shapes instead, which get no gradient), "replaced" (the
      same with other shapes) or "forgotten";
    * ``count``, ``paths`` and ``shapes`` (of the first eight);
    * ``idle``: parameters of the optimizer that the pass does not reach;
    * ``optimizer``: its number among all that live, the oldest first, and ``optimizers``, how many these are;
    * ``names``: for each of the user's functions that run, ``place`` and ``params``: the parameters as expressions.
    """

    key: ClassVar[str] = "unowned"

    def __init__(self, value: Any = None) -> None:
        self._owners = Owners()
        self._entries: list[_Entry] = []

    def models(self, models: Models) -> None:
        self._owners.tell(models.optimizers)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        looked = self._owners.look(roots)
        optimizers = self._owners.optimizers()
        known = held(optimizers)
        again = {id(p) for unowned in looked for p in unowned.new}
        self._entries = [e for e in self._entries if not e.ids & (known | again)]
        self._entries += [_entry(unowned, optimizers) for unowned in looked]

    def before_step(self, optimizer: Optimizer) -> Step:
        self._entries = [e for e in self._entries if e.optimizer() is not optimizer or not e.alive()]
        return "take"

    def found(self) -> Mapping[str, Any]:
        return {"models": [e.told for e in self._entries]} if self._entries else {}


@dataclass(frozen=True)
class _Entry:
    ids: set[int]
    optimizer: ref[Optimizer]
    old: list[ref[Tensor]]
    told: dict[str, Any]

    def alive(self) -> bool:
        """Whether what the optimizer holds in their place is trained after all."""
        return any(p.grad is not None for r in self.old if (p := r()) is not None)


def _entry(unowned: Unowned, optimizers: Sequence[Optimizer]) -> _Entry:
    ids = {id(p) for p in unowned.new}
    paths = [path for path, p in unowned.root.named_parameters() if id(p) in ids]
    told = {
        "kind": "copy" if unowned.copied else "replaced" if unowned.old else "forgotten",
        "count": len(unowned.new),
        "paths": paths[:SHOWN],
        "shapes": [list(p.shape) for p in unowned.new[:SHOWN]],
        "idle": unowned.idle,
        "optimizer": next(i for i, o in enumerate(optimizers) if o is unowned.optimizer),
        "optimizers": len(optimizers),
        "names": _names(ids),
    }
    return _Entry(ids, ref(unowned.optimizer), [ref(p) for p in unowned.old], told)


def _names(ids: set[int]) -> list[dict[str, Any]]:
    """How each function of the user's that is being run can say them: by the first name of a module with all."""
    found = []
    for frame in frames():
        if owner(frame.f_code.co_filename) != "user":
            continue
        for name, module in named_modules(frame):
            if ids <= {id(p) for p in module.parameters()}:
                place: Place = place_of(frame)
                found.append({"place": place, "params": list(_expressions(name, module, ids))})
                break
    return found


def _expressions(name: str, module: nn.Module, ids: set[int]) -> Iterator[str]:
    """In the order of ``module.parameters()``: whole modules where all of theirs are meant."""
    own = [id(p) for p in module.parameters()]
    if own and ids.issuperset(own):
        yield f"*{name}.parameters()"
        return
    for key, p in module.named_parameters(recurse=False):
        if id(p) in ids:
            yield f"{name}.{key}"
    for key, child in module.named_children():
        yield from _expressions(f"{name}.{key}" if key.isidentifier() else f"{name}[{key}]", child, ids)
