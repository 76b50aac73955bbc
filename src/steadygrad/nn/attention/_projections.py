"""Which rows of which weights make the queries and keys of each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steadygrad.nn.attention._edit import Edit
from steadygrad.nn.attention._follow import Site
from steadygrad.nn.attention._products import Operand


@dataclass(frozen=True)
class Rows:
    """Entries of one parameter along one dimension, each belonging to a head or, at ``num_heads``, to none."""

    parameter: Tensor
    dim: int
    head_of_row: Tensor

    def factors(self, of_head: Tensor) -> Tensor:
        """The factor of each entry: that of its head, 1 where there is none."""
        padded = torch.cat([of_head, of_head.new_ones(1)]).to(self.parameter.device)
        return padded[self.head_of_row.to(self.parameter.device)]


@dataclass
class Projections:
    """What makes the queries and keys of one attention. Shared keys serve several heads of queries."""

    num_heads: int
    query: list[Rows] = field(default_factory=list)
    key: list[Rows] = field(default_factory=list)
    shared_keys: bool = False


def of_multihead(module: nn.MultiheadAttention) -> Projections:
    """torch's own layer: one packed weight or three, a packed bias, and a learned extra key."""
    heads, width = module.num_heads, module.embed_dim
    device = module.out_proj.weight.device
    of_row = torch.arange(width, device=device) // module.head_dim
    none = torch.full_like(of_row, heads)
    packed_query, packed_key = torch.cat([of_row, none, none]), torch.cat([none, of_row, none])
    found = Projections(heads)
    if module.in_proj_weight is not None:
        found.query.append(Rows(module.in_proj_weight, 0, packed_query))
        found.key.append(Rows(module.in_proj_weight, 0, packed_key))
    else:
        found.query.append(Rows(module.q_proj_weight, 0, of_row))
        found.key.append(Rows(module.k_proj_weight, 0, of_row))
    if module.in_proj_bias is not None:
        found.query.append(Rows(module.in_proj_bias, 0, packed_query))
        found.key.append(Rows(module.in_proj_bias, 0, packed_key))
    if module.bias_k is not None:
        found.key.append(Rows(module.bias_k, 2, of_row))
    return found


def by_name(model: nn.Module, query: str, key: str, num_heads: int) -> dict[str, Projections]:
    """Linear layers by pattern, paired by the module that holds both; their heads follow one another."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    pairs: dict[str, list[nn.Module]] = {}
    for pattern in (query, key):
        matches = [(n, m) for n, m in model.named_modules() if fnmatchcase(n, pattern)]
        if not matches:
            raise ValueError(
                f"no module is named like {pattern!r}: see [n for n, _ in model.named_modules()]"
            )
        for name, module in matches:
            pairs.setdefault(name.rpartition(".")[0], []).append(module)
    found = {}
    for name, pair in pairs.items():
        if len(pair) != 2 or not all(isinstance(m, nn.Linear) for m in pair):
            raise ValueError(
                f"{query!r} and {key!r} must each match one nn.Linear in {name!r}, "
                f"got {[type(m).__name__ for m in pair]}"
            )
        q, k = pair
        head_dim, rest = divmod(q.out_features, num_heads)  # type: ignore[operator, arg-type]
        if rest or k.out_features % head_dim:  # type: ignore[operator]
            raise ValueError(
                f"{q.out_features} query and {k.out_features} key features in {name!r} do not divide into "
                f"{num_heads} heads"
            )
        found[name] = projections = Projections(num_heads)
        projections.shared_keys = k.out_features != q.out_features
        for module, rows in ((q, projections.query), (k, projections.key)):
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    of_row = torch.arange(parameter.size(0), device=parameter.device)  # type: ignore
                    rows.append(Rows(parameter, 0, of_row // head_dim))  # type: ignore
    return found


@dataclass
class _Layer:
    """A call that multiplied data by a weight, and its output, from which a new graph starts."""

    output: Tensor
    parameters: list[tuple[Tensor, int]]  # with the dimension of the output features


class CutAtLayers(TorchFunctionMode):
    """Starts a new autograd graph behind every linear layer, so that a gradient ends at the nearest one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[_Layer] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        parameters = list(_weights(getattr(func, "__name__", ""), args, kwargs))
        if not parameters:
            return out
        start = out.detach().requires_grad_()
        self.layers.append(_Layer(start, parameters))
        return start.clone()


def _weights(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Tensor, int]]:
    if name == "linear":
        given = [(x, 0) for x in (*args[1:], kwargs.get("weight"), kwargs.get("bias"))]
    elif name == "addmm" and not kwargs:
        given = [(args[0], 0), (args[2], 1)]
    elif name in ("matmul", "__matmul__", "mm"):
        given = [(args[1], 1)]
    else:
        return
    for x, dim in given:
        if isinstance(x, nn.Parameter) and x.ndim in (1, 2):
            # in F.multi_head_attention_forward the weight is a view, and the layer is known already
            yield x, min(dim, x.ndim - 1)


class FindProjections(Edit):
    """Finds, at each attention that runs, the rows of the nearest weights that each head is linear in."""

    title = "QKClip"
    changes_operands = True

    def __init__(self, cut: CutAtLayers) -> None:
        super().__init__()
        self.cut = cut
        self.found: dict[str, Projections] = {}
        self.refused: dict[str, str] = {}

    def operands(self, site: Site, query: Operand, key: Operand) -> tuple[Tensor, Tensor]:
        if not isinstance(site.module, nn.MultiheadAttention):
            try:
                self.found[site.name] = self._projections(query, key)
            except ValueError as reason:
                self.refused[site.name] = str(reason)
        return query.value, key.value

    def _projections(self, query: Operand, key: Operand) -> Projections:
        q_heads, k_heads = self._supports("query", query), self._supports("key", key)
        found = Projections(len(q_heads))
        found.query, shared = _rows(q_heads)
        if shared:
            raise ValueError("heads share rows of the query projection")
        found.key, shared = _rows(k_heads)
        found.shared_keys = shared or len(k_heads) != len(q_heads)
        for rows in found.query:
            for other in found.key:
                used = (rows.head_of_row < len(q_heads)), (other.head_of_row < len(k_heads))
                if rows.parameter is other.parameter and bool((used[0] & used[1]).any()):
                    raise ValueError("queries and keys come from the same rows of a weight")
        return found

    def _supports(self, role: str, operand: Operand) -> list[list[tuple[_Layer, Tensor]]]:
        """For each head the layers that reach it, with a flag for each output feature that does."""
        x = operand.value
        head = operand.head
        if head is None and operand.num_heads is not None and x.ndim == 3:
            x, head = x.unflatten(0, (-1, operand.num_heads)), -3
        outputs = [layer.output for layer in self.cut.layers]
        heads = []
        for h in range(1 if head is None else x.size(head)):
            # one sign with x, so that nothing cancels in the comparison below
            push = torch.where(x < 0, -1.0, 1.0).to(x.dtype) * (0.5 + torch.rand_like(x))
            if head is not None:
                only = torch.zeros(x.size(head), dtype=x.dtype, device=x.device)
                only[h] = 1
                push = push * only.view(-1, *[1] * (-head - 1))
            grads = (
                torch.autograd.grad(x, outputs, push, retain_graph=True, allow_unused=True)
                if outputs and x.requires_grad
                else [None] * len(outputs)
            )
            reached = [(layer, g) for layer, g in zip(self.cut.layers, grads, strict=True) if g is not None]
            reached = [(layer, g) for layer, g in reached if bool(g.any())]
            if not reached:
                raise ValueError(f"no linear layer was found that the {role} comes from")
            # Euler: a function of degree 1 in the outputs equals its derivative along them
            along = sum((g * layer.output).sum(dtype=torch.float64) for layer, g in reached)
            whole = (push * x).sum(dtype=torch.float64)
            # host sync: only when QKClip is made
            if bool((along - whole).abs() > 0.03 * whole.abs()):
                raise ValueError(
                    f"the {role} is not linear in its projection: a normalisation (QK-norm) or an added term "
                    "stands between, so that scaling the weights does not scale the logits"
                )
            heads.append([(layer, g.flatten(0, -2).ne(0).any(0)) for layer, g in reached])
        return heads


def _rows(heads: list[list[tuple[_Layer, Tensor]]]) -> tuple[list[Rows], bool]:
    """The rows of each parameter by head, and whether a row serves several."""
    of_layer: dict[int, tuple[_Layer, Tensor]] = {}
    shared = False
    for h, supports in enumerate(heads):
        for layer, support in supports:
            _, rows = of_layer.setdefault(
                id(layer), (layer, torch.full(support.shape, len(heads), device=support.device))
            )
            shared |= bool((support & (rows < len(heads))).any())
            rows[support] = h
    found = [Rows(p, dim, rows) for layer, rows in of_layer.values() for p, dim in layer.parameters]
    return found, shared
