"""Parameters that get a gradient while no optimizer holds them, and where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.graph.walk import Graph
from steadygrad.probe.names import find_optimizers, find_roots, flat_params

LOOKS = 20  # backward passes at the start of a run: five steps, and as many more where passes are gathered


@dataclass(frozen=True)
class Unowned:
    """Parameters of one model, and the optimizer that should hold them.

    ``old``: what the optimizer holds in their place, of the same number; empty if they were forgotten.
    """

    optimizer: Optimizer
    root: nn.Module
    new: tuple[nn.Parameter, ...]
    old: tuple[Tensor, ...] = ()
    idle: int = 0  # parameters of the optimizer that this backward pass does not reach

    @property
    def copied(self) -> bool:
        """Whether all of them are those of a copy: in the same order, of the same shapes."""
        return bool(self.old) and _shapes(self.new) == _shapes(self.old)


class Owners:
    """Looks at the first backward passes of a run. Objects are searched for only where something is amiss."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Optimizer, None] = WeakKeyDictionary()
        self._left = LOOKS
        self._seen: set[int] = set()

    def tell(self, optimizers: Sequence[Optimizer]) -> None:
        """These are optimizers of the run."""
        self._known.update(dict.fromkeys(optimizers))

    def stop(self) -> None:
        """Look no more."""
        self._left = 0

    def saw(self, tensor: Tensor) -> bool:
        """Whether a backward pass has reached it."""
        return id(tensor) in self._seen

    def optimizers(self) -> list[Optimizer]:
        """Those known, oldest first; of several that share their groups (a wrapper and what it wraps) the first."""
        found = {id(o.param_groups[0]["params"]): o for o in reversed(list(self._known)) if o.param_groups}
        return list(reversed(found.values()))

    def look(self, roots: Sequence[Tensor]) -> list[Unowned]:
        """What is without an owner in the graph of these roots, a backward pass before it runs."""
        if self._left <= 0:
            return []
        self._left -= 1
        leaves = Graph(roots).leaves.values()
        reached = {id(p) for p in leaves if isinstance(p, nn.Parameter)}
        self._seen |= reached
        if reached <= held(self.optimizers()):
            return []
        self._known = WeakKeyDictionary(dict.fromkeys([*find_optimizers(), *self._known]))
        optimizers = self.optimizers()
        return [] if reached <= held(optimizers) else find_unowned(reached, optimizers, self._seen)


def held(optimizers: Sequence[Optimizer]) -> set[int]:
    """The ids of all tensors that are in an optimizer."""
    return {id(p) for optimizer in optimizers for p in flat_params(optimizer)}


def find_unowned(reached: set[int], optimizers: Sequence[Optimizer], seen: set[int]) -> list[Unowned]:
    """For each model with parameters that are reached and not held: who should hold them.

    Tensors that an optimizer holds, of no model that runs, are strays. Models are compared with them in order: by
    shape, then by number of axes (a layer of another width). Without strays like them the parameters were forgotten:
    they belong to the optimizer that holds most of the same model, or to the only one there is. Left alone are
    forgotten layers in evaluation mode, optimizers of plain tensors (an image), whatever could belong to several.

    Args:
        reached: ids of the parameters in the graph of a loss.
        optimizers: all that live.
        seen: ids of the parameters in any graph so far, which are no strays.
    """
    known = held(optimizers)
    models = [root for root in find_roots() if any(id(p) in reached for p in root.parameters())]
    models.sort(key=lambda root: -sum(id(p) in reached for p in root.parameters()))
    running = seen | {id(p) for root in models for p in root.parameters()}
    strays = [(o, [p for p in flat_params(o) if _trained(p) and id(p) not in running]) for o in optimizers]
    strays = [(o, tensors) for o, tensors in strays if tensors]
    found: list[Unowned] = []
    for root in models:
        free = [p for p in root.parameters() if p.requires_grad and id(p) not in known]
        known |= {id(p) for p in free}
        if not any(id(p) in reached for p in free):
            continue
        matches = _copies(free, [p for p in free if id(p) in reached], strays)
        if len(matches) == 1:
            optimizer, new, old = matches[0]
            strays = [(o, tensors) for o, tensors in strays if o is not optimizer]
            found.append(Unowned(optimizer, root, tuple(new), tuple(old), _idle(optimizer, reached)))
        elif not matches:
            owner = _owner(root, optimizers)
            forgotten = _active(root, {id(p) for p in free} & reached)
            if owner is not None and forgotten:
                found.append(Unowned(owner, root, forgotten, (), _idle(owner, reached)))
    return found


Match = tuple[Optimizer, Sequence[nn.Parameter], Sequence[Tensor]]


def _copies(
    free: Sequence[nn.Parameter],
    reached: Sequence[nn.Parameter],
    strays: Sequence[tuple[Optimizer, Sequence[Tensor]]],
) -> list[Match]:
    """The strays that these parameters stand for: as a whole, as one part of them, or with other widths."""
    for alike in (_shapes, _axes):
        for new in (free, reached):
            whole: list[Match] = [(o, new, old) for o, old in strays if alike(new) == alike(old)]
            if whole:
                return whole
        runs: list[Match] = [
            (o, free[i : i + len(old)], old)
            for o, old in strays
            for i in range(len(free) - len(old) + 1)
            if alike is _shapes and _shapes(free[i : i + len(old)]) == _shapes(old)
        ]
        if runs:
            return runs
    return []


def _owner(root: nn.Module, optimizers: Sequence[Optimizer]) -> Optimizer | None:
    """The optimizer of most of this model's parameters; the only one, if it has none of them."""
    weights = [o for o in optimizers if all(isinstance(p, nn.Parameter) for p in flat_params(o))]
    ids = {id(p) for p in root.parameters()}
    shares = [sum(id(p) in ids for p in flat_params(o)) for o in weights]
    if any(shares):
        return weights[shares.index(max(shares))]
    return weights[0] if len(optimizers) == 1 and weights else None


def _active(root: nn.Module, ids: set[int]) -> tuple[nn.Parameter, ...]:
    """Those of the model's parameters with these ids whose layer is in training mode."""
    found = [p for m in root.modules() if m.training for p in m.parameters(recurse=False) if id(p) in ids]
    return tuple(dict.fromkeys(found))


def _trained(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _idle(optimizer: Optimizer, reached: set[int]) -> int:
    return sum(p.requires_grad and id(p) not in reached for p in flat_params(optimizer))


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors]


def _axes(tensors: Sequence[Tensor]) -> list[int]:
    return [t.dim() for t in tensors]
