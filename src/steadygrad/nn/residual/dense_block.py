"""The dense block: every layer sees the outputs of all layers before it, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DenseBlock(nn.Module):
    """Give each layer the outputs of all layers before it, concatenated, and return all of them.

        x_l = H_l([x_0, x_1, .., x_(l-1)]),        y = [x_0, x_1, .., x_L]

    When to use it: where features of every depth matter and parameters are dear; each layer adds few
    channels (the growth rate) and has a direct way to the output and its gradient.

    Values in use: growth rate 12 to 40 (Huang); 6 to 64 layers in a block of DenseNet-121 to -264.

    Cost: the layers, and copies: a concatenation before each of the L layers, which makes memory grow as
    L^2. ``memory_efficient`` keeps none of them and computes each layer once more in the backward pass, for
    about a third more time.

    Args:
        layers: L modules; the l-th takes ``channels + (l - 1) * growth`` channels and puts out ``growth``.
        dim: dimension of the channels: 1 for images, -1 for (B, D).
        memory_efficient: checkpoint each layer. Random numbers and the statistics of batch norms come out as
            without it.

    Called with x_0 it returns [x_0, .., x_L]. No layers: x_0.

    Empty, zero, nan: an empty batch gives an empty one; an inf or nan stays in the output that is it.

    Example:
        >>> block = DenseBlock([nn.Linear(8, 4), nn.Linear(12, 4)], dim=-1)
        >>> block(torch.randn(2, 8)).shape
        torch.Size([2, 16])

    Source: Huang, Liu, van der Maaten & Weinberger (2017), equation 2, https://arxiv.org/abs/1608.06993; the
    checkpoints: Pleiss et al. (2017), https://arxiv.org/abs/1707.06990
    """

    def __init__(self, layers: Iterable[nn.Module], dim: int = 1, memory_efficient: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dim = dim
        self.memory_efficient = memory_efficient

    def forward(self, input: Tensor) -> Tensor:
        outputs = [input]
        for layer in self.layers:
            outputs.append(
                self._recomputed(layer, outputs) if self.memory_efficient else self._run(layer, *outputs)
            )
        return torch.cat(outputs, self.dim)

    def _run(self, layer: nn.Module, *before: Tensor) -> Tensor:
        return layer(torch.cat(before, self.dim))

    def _recomputed(self, layer: nn.Module, before: list[Tensor]) -> Tensor:
        if torch.compiler.is_compiling():  # takes no context_fn, and does not run side effects twice
            return checkpoint(self._run, layer, *before, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _no_statistics(layer)

        return checkpoint(self._run, layer, *before, use_reentrant=False, context_fn=contexts)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, memory_efficient={self.memory_efficient}"


@contextmanager
def _no_statistics(layer: nn.Module) -> Iterator[None]:
    """Batch norms leave their running statistics alone: they have seen this batch before."""
    norms = [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, seen in kept:
            norm.momentum, norm.num_batches_tracked = momentum, seen
