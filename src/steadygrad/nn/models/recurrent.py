"""Stacks of recurrent layers of any depth, plain and residual, with a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from steadygrad._check import count
from steadygrad.nn.models._parts import (
    Gate,
    Norm,
    Scale,
    block_rates,
    check_factories,
    ends_without_norm,
    residual,
)
from steadygrad.nn.residual.residual import Placement

Cell = Callable[..., nn.Module]  # called as torch.nn.LSTM is: (input_size, hidden_size, batch_first=True)
Pool = Literal["last", "mean"]


class RecurrentNet(nn.Module):
    """Recurrent layers one above the other, and what is read off them: what the builders of this module return.

    Called with (B, T, in_features) it returns (B, num_classes), or (B, T, hidden_size) where num_classes is
    None: from the last step of the top layer, or from the mean over its steps. Every layer starts each
    sequence at its own zero state.
    """

    def __init__(
        self,
        stem: nn.Module,
        layers: list[nn.Module],
        norm: nn.Module | None,
        head: nn.Module | None,
        pool: Pool,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:
        x = self.stem(input)
        for layer in self.layers:
            x = layer(x)[0]  # the other part of the tuple is the state after the last step
        if self.norm is not None:
            x = self.norm(x)
        if self.head is None:
            return x
        return self.head(x[:, -1] if self.pool == "last" else x.mean(1))

    def extra_repr(self) -> str:
        return "" if self.head is None else f"pool={self.pool!r}"


def stacked_recurrent(
    in_features: int,
    num_classes: int | None,
    *,
    hidden_size: int,
    depth: int,
    cell: Cell = nn.LSTM,
    pool: Pool = "last",
) -> RecurrentNet:
    """Recurrent layers one above the other without skips: what depth does to a plain stack.

        h_l = cell_l(h_(l-1)),        y = W h_depth[T] + b

    When to use it: up to 3 or 4 layers, and as the bare case beside `residual_recurrent` in a study. The same
    function as ``torch.nn.LSTM(num_layers=depth)``, which is faster on a GPU; here each layer is a module of
    its own, so that any cell fits and each can be watched.

    Values in use: depth 1 to 4 (speech, language); 8 with residual connections from the third on (Wu 2016).

    Cost: the layers.

    Args:
        in_features: size of the last dimension of the input, at least 1.
        num_classes: size of the output, at least 1; None for the sequence of the top layer.
        hidden_size: of every layer, at least 1. A linear layer maps the input to it.
        depth: layers, at least 1.
        cell: called as ``cell(hidden_size, hidden_size, batch_first=True)``: `torch.nn.RNN`,
            `torch.nn.LSTM`, `torch.nn.GRU`, any layer with their call, or a ``functools.partial`` of it.
        pool: "last" for the last step, "mean" for the mean over the steps.

    Returns a `RecurrentNet` with torch's own initial weights, from (B, T, in_features) to (B, num_classes).
    An empty batch gives an empty output; an inf or nan in a sequence stays visible in its output.

    Example:
        >>> import torch
        >>> stacked_recurrent(4, 2, hidden_size=8, depth=3, cell=nn.GRU)(torch.zeros(5, 7, 4)).shape
        torch.Size([5, 2])

    Source: Graves, Mohamed & Hinton (2013), section 2, https://arxiv.org/abs/1303.5778
    """
    _check(in_features, num_classes, hidden_size, depth, pool)
    check_factories(cell=cell)
    layers = [cell(hidden_size, hidden_size, batch_first=True) for _ in range(depth)]
    return _net(in_features, num_classes, hidden_size, layers, None, pool)


def residual_recurrent(
    in_features: int,
    num_classes: int | None,
    *,
    hidden_size: int,
    depth: int,
    cell: Cell,
    placement: Placement | None = "pre",
    norm: Norm = nn.LayerNorm,
    scale: Scale = 1.0,
    skip_scale: float = 1.0,
    gate: Gate | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pool: Pool = "last",
) -> RecurrentNet:
    """Recurrent layers one above the other, each in a residual block of its own: depth that still trains.

        h_0 = W_0 x + b_0,        h_l = h_(l-1) + cell_l(N(h_(l-1))),        y = W N(h_depth)[T] + b

    with the last N for placement "pre" and "sandwich"; `Residual` has the equation of every placement. The
    skip runs up through the layers, not along the time: against explosion in time there are the cell, its
    weights (``init.initialise(scheme="orthogonal_recurrent")``) and clipping.

    When to use it: sequences that need more than 3 or 4 recurrent layers. `residual_rnn`, `residual_lstm`
    and `residual_gru` are this with torch's cells.

    Values in use: depth 8 with 1024 units (Wu 2016, without norms); placement "pre" with layer norm for tens
    of layers; dropout 0.1 to 0.3.

    Cost: the layers and a norm for each.

    Args:
        in_features: size of the last dimension of the input, at least 1.
        num_classes: size of the output, at least 1; None for the sequence of the top layer.
        hidden_size: of every layer and of the stream, at least 1. A linear layer maps the input to it.
        depth: layers, at least 1.
        cell: called as ``cell(hidden_size, hidden_size, batch_first=True)``: `torch.nn.RNN`,
            `torch.nn.LSTM`, `torch.nn.GRU`, any layer with their call, or a ``functools.partial`` of it, as
            ``partial(nn.RNN, nonlinearity="relu")``.
        placement: "pre", "post", "sandwich", or None for no norm.
        norm: makes a norm from ``hidden_size``.
        scale: of the branch: a number, `SkipInit`, `LayerScale`, or a factory called as
            ``(hidden_size, dim=-1)``.
        skip_scale: of the skip, finite.
        gate: makes a gate from ``hidden_size`` (`GRUGate` and its kin) in place of the sum.
        dropout: probability at the end of each branch, 0 to 1.
        drop_path: stochastic depth of the last layer, 0 to 1; it rises linearly up to there.
        pool: "last" for the last step, "mean" for the mean over the steps.

    Returns a `RecurrentNet` with torch's own initial weights, from (B, T, in_features) to (B, num_classes).
    An empty batch gives an empty output; an inf or nan in a sequence stays visible in its output.

    Example:
        >>> import torch
        >>> net = residual_recurrent(4, 2, hidden_size=8, depth=20, cell=nn.GRU)
        >>> net(torch.zeros(5, 7, 4)).shape
        torch.Size([5, 2])

    Source: Wu et al. (2016), section 3.1, https://arxiv.org/abs/1609.08144; the placement of the norm: Xiong
    et al. (2020), https://arxiv.org/abs/2002.04745
    """
    _check(in_features, num_classes, hidden_size, depth, pool)
    check_factories(cell=cell, norm=norm, gate=gate)
    layers: list[nn.Module] = [
        residual(
            cell(hidden_size, hidden_size, batch_first=True),
            hidden_size,
            placement=placement,
            norm=norm,
            scale=scale,
            gate=gate,
            skip_scale=skip_scale,
            dropout=dropout,
            drop_path=rate,
        )
        for rate in block_rates(depth, drop_path)
    ]
    last = norm(hidden_size) if ends_without_norm(placement) else None
    return _net(in_features, num_classes, hidden_size, layers, last, pool)


def residual_rnn(
    in_features: int,
    num_classes: int | None,
    *,
    hidden_size: int,
    depth: int,
    cell: Cell = nn.RNN,
    **options: Any,
) -> RecurrentNet:
    """Plain recurrent (tanh) layers one above the other, each in a residual block of its own.

        h_l = h_(l-1) + RNN_l(N(h_(l-1)))

    When to use it: studies of depth and time, and short sequences; it has no gate against explosion in time.

    Values in use: as for `residual_recurrent`; ``cell=partial(nn.RNN, nonlinearity="relu")`` for an IRNN (Le 2015).

    Cost: the layers and a norm for each.

    Args and return value: those of `residual_recurrent`, with ``cell=nn.RNN`` unless another is given.

    Example:
        >>> import torch
        >>> residual_rnn(4, 2, hidden_size=8, depth=20)(torch.zeros(5, 7, 4)).shape
        torch.Size([5, 2])

    Source: Wu et al. (2016), section 3.1, https://arxiv.org/abs/1609.08144; the placement of the norm: Xiong
    et al. (2020), https://arxiv.org/abs/2002.04745
    """
    return residual_recurrent(
        in_features, num_classes, hidden_size=hidden_size, depth=depth, cell=cell, **options
    )


def residual_lstm(
    in_features: int,
    num_classes: int | None,
    *,
    hidden_size: int,
    depth: int,
    cell: Cell = nn.LSTM,
    **options: Any,
) -> RecurrentNet:
    """LSTM layers one above the other, each in a residual block of its own.

        h_l = h_(l-1) + LSTM_l(N(h_(l-1)))

    When to use it: sequences that need more than 3 or 4 recurrent layers.

    Values in use: 8 layers of 1024 units (Wu 2016, without norms); ``cell=`` a layer-normalised LSTM for long
    sequences.

    Cost: the layers and a norm for each.

    Args and return value: those of `residual_recurrent`, with ``cell=nn.LSTM`` unless another is given.

    Example:
        >>> import torch
        >>> residual_lstm(4, 2, hidden_size=8, depth=20)(torch.zeros(5, 7, 4)).shape
        torch.Size([5, 2])

    Source: Wu et al. (2016), section 3.1, https://arxiv.org/abs/1609.08144; the placement of the norm: Xiong
    et al. (2020), https://arxiv.org/abs/2002.04745
    """
    return residual_recurrent(
        in_features, num_classes, hidden_size=hidden_size, depth=depth, cell=cell, **options
    )


def residual_gru(
    in_features: int,
    num_classes: int | None,
    *,
    hidden_size: int,
    depth: int,
    cell: Cell = nn.GRU,
    **options: Any,
) -> RecurrentNet:
    """GRU layers one above the other, each in a residual block of its own.

        h_l = h_(l-1) + GRU_l(N(h_(l-1)))

    When to use it: as `residual_lstm`, with a quarter fewer parameters.

    Values in use: as for `residual_lstm`.

    Cost: the layers and a norm for each.

    Args and return value: those of `residual_recurrent`, with ``cell=nn.GRU`` unless another is given.

    Example:
        >>> import torch
        >>> residual_gru(4, 2, hidden_size=8, depth=20)(torch.zeros(5, 7, 4)).shape
        torch.Size([5, 2])

    Source: Wu et al. (2016), section 3.1, https://arxiv.org/abs/1609.08144; the placement of the norm: Xiong
    et al. (2020), https://arxiv.org/abs/2002.04745
    """
    return residual_recurrent(
        in_features, num_classes, hidden_size=hidden_size, depth=depth, cell=cell, **options
    )


def _net(
    in_features: int,
    num_classes: int | None,
    hidden_size: int,
    layers: list[nn.Module],
    norm: nn.Module | None,
    pool: Pool,
) -> RecurrentNet:
    head = None if num_classes is None else nn.Linear(hidden_size, num_classes)
    return RecurrentNet(nn.Linear(in_features, hidden_size), layers, norm, head, pool)


def _check(in_features: int, num_classes: int | None, hidden_size: int, depth: int, pool: str) -> None:
    count("in_features", in_features)
    count("hidden_size", hidden_size)
    count("depth", depth)
    if num_classes is not None:
        count("num_classes", num_classes)
    if pool not in ("last", "mean"):
        raise ValueError(f"pool must be 'last' or 'mean', got {pool!r}")
