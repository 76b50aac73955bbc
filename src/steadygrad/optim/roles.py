"""What a parameter does in its model: optimizers that choose a norm by layer ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

ROLES = ("hidden", "embedding", "tied", "output", "vector")


def parameter_roles(
    model: nn.Module, *, outputs: Sequence[str] | None = None, embeddings: Sequence[str] = ()
) -> dict[str, str]:
    """Say of every trained parameter whether it is a hidden weight, an embedding, the output layer or a vector.

    ``"vector"`` is every parameter of fewer than two dimensions (biases, gains), and those of more than two in
    which one dimension alone is larger than 1. ``"embedding"`` is the weight of nn.Embedding and nn.EmbeddingBag,
    ``"tied"`` one that such a module shares with another layer, ``"output"`` the weight of the last layer,
    ``"hidden"`` all other weights.

    Args:
        model: any module.
        outputs: names of the modules or parameters of the output layers; () for a model without one. None takes the
            module with weights that was registered last, which is not the one that is called last if the model was
            written in another order: look at the result.
        embeddings: names of further modules or parameters that are looked up rather than multiplied (position
            embeddings, class tokens).

    Returns:
        Role by name, in the order of ``model.named_parameters()``. Parameters without ``requires_grad`` are left out.

    Raises:
        ValueError: a name that no module or parameter has.

    Example:
        >>> parameter_roles(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)))
        ... # doctest: +NORMALIZE_WHITESPACE
        {'0.weight': 'hidden', '0.bias': 'vector', '1.weight': 'vector', '1.bias': 'vector',
         '2.weight': 'output', '2.bias': 'vector'}
    """
    embedded: set[Tensor] = set()
    multiplied: set[Tensor] = set()
    last: set[Tensor] = set()
    for module in model.modules():
        weights: set[Tensor] = {p for p in module.parameters(recurse=False) if _is_weight(p)}
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            embedded |= weights
        else:
            multiplied |= weights
            last = weights or last
    tied = embedded & multiplied
    embedded |= _named(model, embeddings, "embeddings")
    final = last if outputs is None else _named(model, outputs, "outputs")

    def role(p: Tensor) -> str:
        if not _is_weight(p):
            return "vector"
        if p in tied:
            return "tied"
        return "embedding" if p in embedded else "output" if p in final else "hidden"

    return {name: role(p) for name, p in model.named_parameters() if p.requires_grad}


def _is_weight(p: Tensor) -> bool:
    return sum(size > 1 for size in p.shape) > 1 if p.ndim != 2 else True


def _named(model: nn.Module, names: Sequence[str], argument: str) -> set[Tensor]:
    if isinstance(names, str):
        raise TypeError(f'{argument} must be a list of names, got the string "{names}": write ["{names}"]')
    modules = dict(model.named_modules())
    params = dict(model.named_parameters(remove_duplicate=False))
    found: set[Tensor] = set()
    for name in names:
        if name in modules:
            found |= set(modules[name].parameters())
        elif name in params:
            found.add(params[name])
        else:
            raise ValueError(f'{argument} names "{name}", and the model has no such module or parameter')
    return found


def grouped(model: nn.Module, roles: Mapping[str, str]) -> dict[str, list[tuple[str, Tensor]]]:
    """The named parameters of each role that occurs, in the order of `ROLES`."""
    params: dict[str, Tensor] = dict(model.named_parameters())
    found = {role: [(n, params[n]) for n, r in roles.items() if r == role] for role in ROLES}
    if not any(found.values()):
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad: nothing to optimise")
    return {role: members for role, members in found.items() if members}
