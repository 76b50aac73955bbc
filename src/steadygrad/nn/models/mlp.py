"""Fully connected nets of any depth: plain, residual, highway, dense."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from steadygrad._check import count, fraction, number
from steadygrad.nn.models._parts import (
    Activation,
    Gate,
    Norm,
    Scale,
    block_rates,
    check_factories,
    ends_without_norm,
    residual,
)
from steadygrad.nn.residual.dense_block import DenseBlock
from steadygrad.nn.residual.highway import highway_linear
from steadygrad.nn.residual.residual import Placement


def mlp(
    in_features: int,
    out_features: int,
    *,
    width: int,
    depth: int,
    activation: Activation = nn.ReLU,
    norm: Norm | None = None,
    dropout: float = 0.0,
    bias: bool = True,
) -> nn.Sequential:
    """A plain fully connected net: the one that explodes or dies when it gets deep.

        h_l = D(a(N(W_l h_(l-1) + b_l))),        l = 1 .. depth,        y = W h_depth + b

    When to use it: up to some ten layers; deeper with an initialisation at the critical point
    (``init.initialise(scheme="critical")`` or "orthogonal"), and as the bare case of a study. Otherwise
    `residual_mlp`.

    Values in use: depth 2 to 5; 50 to 10,000 in studies of signal propagation (Schoenholz 2017, Xiao 2018).

    Cost: about depth * width^2 parameters.

    Args:
        in_features: size of the last dimension of the input, at least 1.
        out_features: size of the last dimension of the output, at least 1.
        width: units of a hidden layer, at least 1.
        depth: hidden layers, at least 1; the net has depth + 1 linear layers.
        activation: makes an activation: a module class or a factory without arguments.
        norm: makes a norm from ``width``, between the linear layer and its activation; None for none.
        dropout: probability after each activation, 0 to 1.
        bias: whether the linear layers have one.

    Returns a `torch.nn.Sequential` from (..., in_features) to (..., out_features), with torch's own initial
    weights. An empty batch gives an empty output; an inf or nan in an example stays visible in its output,
    except where the activation maps it to a number.

    Example:
        >>> import torch
        >>> net = mlp(4, 2, width=16, depth=3, activation=nn.Tanh)
        >>> net(torch.zeros(5, 4)).shape, sum(isinstance(m, nn.Linear) for m in net)
        (torch.Size([5, 2]), 4)

    Source: Glorot & Bengio (2010), section 2, https://proceedings.mlr.press/v9/glorot10a.html
    """
    _check(in_features, out_features, width, depth)
    check_factories(activation=activation, norm=norm)
    fraction("dropout", dropout)
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(nn.Linear(width if index else in_features, width, bias=bias))
        if norm is not None:
            layers.append(norm(width))
        layers.append(activation())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(width, out_features, bias=bias))


def residual_mlp(
    in_features: int,
    out_features: int,
    *,
    width: int,
    depth: int,
    hidden: int | None = None,
    activation: Activation = nn.ReLU,
    placement: Placement | None = "pre",
    norm: Norm = nn.LayerNorm,
    scale: Scale = 1.0,
    skip_scale: float = 1.0,
    gate: Gate | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    bias: bool = True,
) -> nn.Sequential:
    """A residual fully connected net: blocks of two linear layers around a stream that runs through.

        h_0 = W_0 x + b_0,        h_l = Residual(W2 a(W1 h + b1) + b2)(h_(l-1)),        y = W N(h_depth) + b

    with the last N for placement "pre" and "sandwich"; `Residual` has the equation of a block.

    When to use it: fully connected nets of more than some ten layers, up to thousands.

    Values in use: placement "pre"; without norm (placement None) ``scale=SkipInit`` or a fixed
    1 / sqrt(2 depth); ``scale=LayerScale``; drop_path to 0.5 in deep nets.

    Cost: about 2 * depth * width * hidden parameters.

    Args:
        in_features: size of the last dimension of the input, at least 1.
        out_features: size of the last dimension of the output, at least 1.
        width: of the stream, at least 1.
        depth: residual blocks, at least 1; the net has 2 * depth + 2 linear layers.
        hidden: units inside a block; ``width`` if left out.
        activation: makes an activation: a module class or a factory without arguments.
        placement: "pre", "post", "sandwich", or None for no norm.
        norm: makes a norm from ``width``.
        scale: of the branch: a number, `SkipInit`, `LayerScale`, or a factory called as ``(width, dim=-1)``.
        skip_scale: of the skip, finite.
        gate: makes a gate from ``width`` (`GRUGate` and its kin) in place of the sum.
        dropout: probability at the end of each branch, 0 to 1.
        drop_path: stochastic depth of the last block, 0 to 1; it rises linearly up to there.
        bias: whether the linear layers have one.

    Returns a `torch.nn.Sequential` with stem, blocks, (norm,) head, from (..., in_features) to
    (..., out_features), with torch's own initial weights. An empty batch gives an empty output; an inf or
    nan in an example stays visible in its output.

    Example:
        >>> import torch
        >>> residual_mlp(4, 2, width=16, depth=50)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])

    Source: He, Zhang, Ren & Sun (2016), equations 1 and 2, https://arxiv.org/abs/1603.05027
    """
    _check(in_features, out_features, width, depth)
    check_factories(activation=activation, norm=norm, gate=gate)
    hidden = width if hidden is None else count("hidden", hidden)

    def block(rate: float) -> nn.Module:
        branch = nn.Sequential(
            nn.Linear(width, hidden, bias=bias), activation(), nn.Linear(hidden, width, bias=bias)
        )
        return residual(
            branch,
            width,
            placement=placement,
            norm=norm,
            scale=scale,
            gate=gate,
            skip_scale=skip_scale,
            dropout=dropout,
            drop_path=rate,
        )

    parts: dict[str, nn.Module] = {"stem": nn.Linear(in_features, width, bias=bias)}
    parts["blocks"] = nn.Sequential(*(block(rate) for rate in block_rates(depth, drop_path)))
    if ends_without_norm(placement):
        parts["norm"] = norm(width)
    parts["head"] = nn.Linear(width, out_features, bias=bias)
    return nn.Sequential(OrderedDict(parts))


def highway_mlp(
    in_features: int,
    out_features: int,
    *,
    width: int,
    depth: int,
    activation: Activation = nn.ReLU,
    gate_bias: float = -2.0,
) -> nn.Sequential:
    """A fully connected highway net.

        h_0 = W_0 x + b_0,        h_l = a(W_H h + b_H) T + h (1 - T),  T = sigmoid(W_T h + b_T),  h = h_(l-1)

    When to use it: beside `residual_mlp` in a study, or where a unit should be able to forget its input.

    Values in use: depth 10 to 100 and width 50 on MNIST, to 900 layers (Srivastava); gate_bias -1 to -4, the
    deeper the more negative: of the input about (1 - sigmoid(gate_bias))^depth arrives at the end, so that 200
    layers want -5.

    Cost: about 2 * depth * width^2 parameters.

    Args:
        in_features: size of the last dimension of the input, at least 1.
        out_features: size of the last dimension of the output, at least 1.
        width: of each layer, at least 1.
        depth: highway layers, at least 1.
        activation: makes an activation: a module class or a factory without arguments.
        gate_bias: of every gate at the start, finite. ``init.initialise`` keeps it.

    Returns a `torch.nn.Sequential` with stem, blocks, head, from (..., in_features) to (..., out_features),
    with torch's own initial weights. An empty batch gives an empty output; an inf or nan in an example stays
    visible in its output.

    Example:
        >>> import torch
        >>> highway_mlp(4, 2, width=16, depth=50)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])

    Source: Srivastava, Greff & Schmidhuber (2015), section 2, https://arxiv.org/abs/1507.06228
    """
    _check(in_features, out_features, width, depth)
    check_factories(activation=activation)
    number("gate_bias", gate_bias)
    blocks = (highway_linear(width, activation=activation, gate_bias=gate_bias) for _ in range(depth))
    return nn.Sequential(
        OrderedDict(
            stem=nn.Linear(in_features, width),
            blocks=nn.Sequential(*blocks),
            head=nn.Linear(width, out_features),
        )
    )


def dense_mlp(
    in_features: int,
    out_features: int,
    *,
    depth: int,
    growth: int,
    activation: Activation = nn.ReLU,
    norm: Norm | None = None,
    dropout: float = 0.0,
    memory_efficient: bool = False,
) -> nn.Sequential:
    """A densely connected net of linear layers: each sees the input and the outputs of all layers before it.

        h_l = D(a(N(W_l [x, h_1, .., h_(l-1)] + b_l))),        y = W [x, h_1, .., h_depth] + b

    When to use it: tabular data and studies of connectivity: each layer has a direct way to the loss.

    Values in use: growth 12 to 40 (Huang 2017, for convolutions).

    Cost: about growth^2 * depth^2 / 2 parameters, and as many copied numbers for each example unless
    ``memory_efficient``.

    Args:
        in_features: size of the last dimension of the input, at least 1.
        out_features: size of the last dimension of the output, at least 1.
        depth: dense layers, at least 1.
        growth: units that each layer adds, at least 1.
        activation: makes an activation: a module class or a factory without arguments.
        norm: makes a norm from ``growth``, between the linear layer and its activation; None for none.
        dropout: probability after each activation, 0 to 1.
        memory_efficient: compute each layer again in the backward pass (`DenseBlock`).

    Returns a `torch.nn.Sequential` with block and head, from (..., in_features) to (..., out_features), with
    torch's own initial weights. An empty batch gives an empty output; an inf or nan in an example stays
    visible in its output.

    Example:
        >>> import torch
        >>> dense_mlp(4, 2, depth=50, growth=2)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])

    Source: Huang, Liu, van der Maaten & Weinberger (2017), equation 2, https://arxiv.org/abs/1608.06993
    """
    _check(in_features, out_features, 1, depth)
    check_factories(activation=activation, norm=norm)
    count("growth", growth)
    fraction("dropout", dropout)

    def layer(features: int) -> nn.Sequential:
        parts: list[nn.Module] = [nn.Linear(features, growth)]
        if norm is not None:
            parts.append(norm(growth))
        parts.append(activation())
        if dropout:
            parts.append(nn.Dropout(dropout))
        return nn.Sequential(*parts)

    layers = (layer(in_features + index * growth) for index in range(depth))
    return nn.Sequential(
        OrderedDict(
            block=DenseBlock(layers, dim=-1, memory_efficient=memory_efficient),
            head=nn.Linear(in_features + depth * growth, out_features),
        )
    )


def _check(in_features: int, out_features: int, width: int, depth: int) -> None:
    count("in_features", in_features)
    count("out_features", out_features)
    count("width", width)
    count("depth", depth)
