"""Names of the trained tensors, as the module tree names them."""

from __future__ import annotations

import gc
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.optim import Optimizer

from steadygrad.records import ParamInfo

# Children under which wrappers keep the model itself: torch.compile, Lightning Fabric, FSDP, activation checkpoints.
WRAPPER_PARTS = frozenset(
    {"_orig_mod", "_forward_module", "_original_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)


class NamedModule(NamedTuple):
    """A module with its path in the tree, wrappers left out; "" is the root."""

    path: str
    module: nn.Module


class _Place(NamedTuple):
    name: str
    module: str
    module_type: str


def find_roots() -> list[nn.Module]:
    """Every live module tree of the process that has a parameter, oldest first.

    A root is no child of another live module. Trees without parameters (losses, metrics) are left out. Modules
    are found among the objects of the garbage collector by their type alone: ``isinstance`` would ask the objects
    themselves, and some of them warn, import or raise when asked. What ``gc.freeze`` has put away is not seen.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> any(root is model for root in find_roots()), any(root is model[0] for root in find_roots())
        (True, False)
    """
    modules: list[Any] = [x for x in _live_objects() if issubclass(type(x), nn.Module)]
    inner = {id(child) for module in modules for _, child in _children(module)}
    return [x for x in modules if id(x) not in inner and _has_parameter(x)]


def find_optimizers() -> list[Optimizer]:
    """Every live optimizer of the process, oldest first."""
    return [x for x in _live_objects() if issubclass(type(x), Optimizer)]  # type: ignore[misc]


def find_compiled() -> list[nn.Module]:
    """The modules that are run through ``torch.compile(module)``, whoever holds the compiled one."""
    if not _has_compiled():
        return []
    wrappers: list[Any] = [x for x in _live_objects() if is_compiled_wrapper(type(x))]
    return [inner for wrapper in wrappers for _, inner in _children(wrapper)]


def _has_compiled() -> bool:
    """Whether ``torch.compile`` was called in this process: else no object needs to be looked at."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return False
    patch: Any = getattr(getattr(dynamo, "TorchPatcher", None), "patch", None)
    cache_info = getattr(patch, "cache_info", None)
    return cache_info is None or cache_info().currsize > 0


def is_compiled_wrapper(kind: type) -> bool:
    """Whether ``torch.compile(module)`` makes objects of this type (known by name: the class is heavy to import)."""
    return issubclass(kind, nn.Module) and any(base.__name__ == "OptimizedModule" for base in kind.__mro__)


def named_roots(
    roots: Sequence[nn.Module], optimizers: Sequence[Optimizer] | None = None
) -> list[tuple[str, nn.Module]]:
    """The roots whose parameters this run trains, in the order given, each with the prefix of its names.

    One such root has no prefix. Several (a GAN) are told apart by class name in snake case, numbered from 0 where
    that is equal: ``generator.``, ``linear_0.``, ``linear_1.``. A root that trains nothing beyond what another
    root holds already (a traced copy, a view of the same layers) is left out.

    Args:
        roots: module trees.
        optimizers: those of the run; all live ones if None.
    """
    if (
        optimizers is None
    ):  # one root is named the same whoever trains it: no need to look through all objects
        optimizers = find_optimizers() if len(roots) > 1 else ()
    trained = {id(p) for optimizer in optimizers for p in flat_params(optimizer)}
    held = [{id(p) for _, p in _named_tensors(root)} for root in roots]
    if trained & set[int]().union(*held):  # else no optimizer is known yet, and every root counts
        held = [tensors & trained for tensors in held]
    # The root that holds most speaks first; graphs that torch.fx made of a model speak last.
    order = sorted(
        range(len(roots)), key=lambda i: (issubclass(type(roots[i]), GraphModule), -len(held[i]), i)
    )
    claimed: set[int] = set()
    kept = []
    for i in order:
        if held[i] - claimed:
            claimed |= held[i]
            kept.append(i)
    kept.sort()
    if len(kept) <= 1:
        return [("", roots[i]) for i in kept]
    snakes = [_snake_case(class_name(_unwrapped(roots[i]))) for i in kept]
    total, seen = Counter(snakes), Counter[str]()
    result = []
    for i, snake in zip(kept, snakes, strict=True):
        prefix = f"{snake}_{seen[snake]}" if total[snake] > 1 else snake
        seen[snake] += 1
        result.append((f"{prefix}.", roots[i]))
    return result


def name_parameters(
    optimizer: Optimizer,
    optimizer_index: int,
    roots: Sequence[nn.Module],
    first_index: int,
    optimizers: Sequence[Optimizer] | None = None,
) -> list[ParamInfo]:
    """Name everything that an optimizer trains.

    The result is in the order of the optimizer's ``param_groups``, flattened (:func:`flat_params`): entry ``i`` is
    about the ``i``-th tensor and has ``index == first_index + i``. Callers rely on that order.

    Names are those of ``named_parameters`` without the parts that wrappers add (``torch.compile``,
    DistributedDataParallel, DataParallel, FSDP, Fabric). A parametrised weight keeps its true name,
    ``fc.parametrizations.weight.original``; its module is ``fc``. A shared tensor is named once, by its first
    place, and has the others as ``aliases``. A tensor that is in no module is called by the name that the
    optimizer was given for it, else ``param_groups.0.params.3``.

    Args:
        optimizer: whose parameters are named.
        optimizer_index: its number in the run.
        roots: module trees, from :func:`find_roots` or from the user.
        first_index: index of its first parameter in the tables of the trace.
        optimizers: all optimizers of the run, which decide on prefixes (:func:`named_roots`); live ones if None.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> [p.name for p in name_parameters(optimizer, 0, [model], 0, [optimizer])]
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if optimizers is not None and not any(known is optimizer for known in optimizers):
        optimizers = [*optimizers, optimizer]
    places: dict[int, list[_Place]] = {}
    for prefix, root in named_roots(roots, optimizers):
        for place, tensor in _named_tensors(root):
            path = (prefix + place.module).removesuffix(".")
            found = _Place(prefix + place.name, path, place.module_type)
            known = places.setdefault(id(tensor), [])
            if all(found.name != other.name for other in known):
                known.append(found)
    infos: list[ParamInfo] = []
    for number, group in enumerate(optimizer.param_groups):
        given = group.get("param_names") or ()
        for position, tensor in enumerate(group["params"]):
            fallback = (
                given[position] if position < len(given) else f"param_groups.{number}.params.{position}"
            )
            first, *others = places.get(id(tensor)) or [_Place(fallback, "", "")]
            infos.append(
                ParamInfo(
                    index=first_index + len(infos),
                    name=first.name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    optimizer=optimizer_index,
                    module=first.module,
                    module_type=first.module_type,
                    aliases=tuple(other.name for other in others),
                )
            )
    return infos


def flat_params(optimizer: Optimizer) -> list[Tensor]:
    """The tensors of all groups of an optimizer, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether some are parts of tensors that are spread over ranks (DTensors, as FSDP2 has them)."""
    return any(hasattr(tensor, "placements") for tensor in tensors)


def class_name(module: nn.Module) -> str:
    """The class as the user wrote it: without what parametrisation and FSDP put in its place."""
    kind = type_before_parametrizations(module)
    if kind.__name__.startswith("FSDP") and kind.__bases__[0].__name__ == "FSDPModule":  # made by fully_shard
        kind = kind.__bases__[-1]
    return kind.__name__


def walk(root: nn.Module, into: Callable[[nn.Module], bool] = lambda module: True) -> Iterator[NamedModule]:
    """Every module of a tree, parents first, once for each place where it stands; children where ``into`` allows."""
    stack: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", root, ())]
    while stack:
        path, module, above = stack.pop()
        yield NamedModule(path, module)
        if not into(module):
            continue
        above = (*above, id(module))
        for name, child in reversed(_children(module)):
            if id(child) not in above:  # a module may hold itself by a detour
                stack.append((_child_path(path, module, name), child, above))


def _child_path(path: str, module: nn.Module, name: str) -> str:
    if name in WRAPPER_PARTS or (
        name == "module" and issubclass(type(module), (DistributedDataParallel, DataParallel))
    ):
        return path
    return f"{path}.{name}" if path else name


def _unwrapped(root: nn.Module) -> nn.Module:
    """The user's own module under any number of wrappers."""
    while inner := next(
        (child for name, child in _children(root) if _child_path("", root, name) == ""), None
    ):
        root = inner
    return root


def _named_tensors(root: nn.Module) -> Iterator[tuple[_Place, Tensor]]:
    modules: dict[str, nn.Module] = {}
    for path, module in walk(root):
        modules[path] = module  # a wrapper comes before what it wraps, which then takes its path
        owner = path
        if (
            ".parametrizations." in f".{path}"
        ):  # the layer whose weight it is, not the list that holds the original
            owner = f".{path}".rpartition(".parametrizations.")[0].removeprefix(".")
        for name, tensor in _parameters(module):
            place = _Place(f"{path}.{name}" if path else name, owner, class_name(modules[owner]))
            yield place, tensor


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children, read from the table itself: a subclass may change ``children()``, or not have run ``__init__``."""
    try:
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        return [(name, child) for name, child in children if issubclass(type(child), nn.Module)]
    except Exception:  # noqa: BLE001 - a half-built foreign module has no children to name
        return []


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    try:
        return [(name, p) for name, p in module._parameters.items() if p is not None]
    except Exception:  # noqa: BLE001 - as above
        return []


def _has_parameter(root: nn.Module) -> bool:
    return any(_parameters(module) for _, module in walk(root))


def _live_objects() -> Iterator[object]:
    """Objects of the garbage collector, old ones first, so that numbers in names follow the order of creation."""
    for generation in (2, 1, 0):
        yield from gc.get_objects(generation=generation)


def _snake_case(name: str) -> str:
    """``GPT2Model`` -> ``gpt2_model``, ``Generator`` -> ``generator``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
