"""A recorded run of which every value's size and place in the autograd graph are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from steadygrad.init._trace import Node, Recorder

FUSED = frozenset("rnn_tanh rnn_relu gru lstm".split())  # torch's calls that run all layers over all steps


@dataclass(frozen=True, eq=False)
class FusedCall:
    """One of torch's recurrent calls with what it was given, for one or more layers and directions."""

    func: Callable[..., Any]
    input: Tensor  # (T, B, N), (B, T, N) with batch_first, or packed (sum of sizes, N)
    sizes: Tensor | None  # sequences left in each step of a packed input
    state: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]  # of each direction of each layer in turn
    has_biases: bool
    num_layers: int
    dropout: float  # 0 in eval mode
    directions: int
    batch_first: bool

    @property
    def per_direction(self) -> int:
        return len(self.weights) // (self.num_layers * self.directions)

    @property
    def steps(self) -> int:
        return len(self.sizes) if self.sizes is not None else self.input.shape[int(self.batch_first)]

    def position(self, index: int) -> int:
        """Of a weight among the tensor arguments, which is how a recorded use names it."""
        return 1 + (self.sizes is not None) + len(self.state) + index


class Measured(Recorder):
    """Keeps rms and the place in the autograd graph of every value, at the time it is made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.rms: dict[Node, float] = {}
        self.edges: dict[Node, Any] = {}
        self.like: dict[Node, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self.fused: dict[Node, FusedCall] = {}

    def add(self, tensor: Tensor | None, name: str, parents: tuple[Node, ...] = (), **more: Any) -> Node:
        node = super().add(tensor, name, parents, **more)
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
            self.rms[node] = rms(tensor)
            if tensor.requires_grad:
                # not the tensor itself, which may be changed in place later
                self.edges[node] = get_gradient_edge(tensor)
                self.like[node] = (tensor.shape, tensor.dtype, tensor.device)
        return node

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        super().record(func, args, kwargs, out)
        if getattr(func, "__name__", "") not in FUSED or len(args) != 9:  # as torch's modules call them
            return
        part = self.node_of(out[0])
        if part is not None and part.parents and part.parents[0].weights:
            self.fused[part.parents[0]] = _call(func, args)

    def value(self, node: Node) -> Node:
        """The node that holds a call's value: itself, or of several outputs the first."""
        return next(iter(self.values(node)), node)

    def values(self, node: Node) -> list[Node]:
        """All outputs of a call."""
        return [node] if node in self.rms else [c for c in node.children if c.name == "part"]


def rms(tensor: Tensor) -> float:
    return norm_of(tensor) / math.sqrt(tensor.numel()) if tensor.numel() else math.nan


def norm_of(*tensors: Tensor | None) -> float:
    """Norm of all together; a None is 0."""
    norms = []
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.complex128 if tensor.is_complex() else torch.float64
            norms.append(torch.linalg.vector_norm(tensor.detach(), dtype=dtype).item())  # host sync
    return math.hypot(*norms)


def _call(func: Callable[..., Any], args: tuple[Any, ...]) -> FusedCall:
    packed = not isinstance(args[3], bool)
    data, (state, weights, biases, layers, dropout, train, both) = args[0], args[1 + packed : 8 + packed]
    return FusedCall(
        func=func,
        input=data.detach(),
        sizes=args[1] if packed else None,
        state=tuple(s.detach() for s in ((state,) if isinstance(state, Tensor) else state)),
        weights=tuple(w.detach() for w in weights),
        has_biases=biases,
        num_layers=layers,
        dropout=dropout if train else 0.0,
        directions=2 if both else 1,
        batch_first=not packed and args[8],
    )
