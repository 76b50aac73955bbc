"""Convolutional nets for images of any size, of any depth: residual and dense."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from steadygrad._check import count, fraction
from steadygrad.nn.models._parts import Activation, Norm, Scale, block_rates, check_factories, make_scale
from steadygrad.nn.residual.dense_block import DenseBlock
from steadygrad.nn.residual.residual import Residual


def resnet(
    in_channels: int,
    num_classes: int,
    *,
    depth: int,
    width: int = 16,
    num_stages: int = 3,
    activation: Activation = nn.ReLU,
    norm: Norm | None = nn.BatchNorm2d,
    scale: Scale = 1.0,
    skip_scale: float = 1.0,
    drop_path: float = 0.0,
) -> nn.Sequential:
    """A residual net for images, of pre-activation basic blocks: two 3 x 3 convolutions around a clean skip.

        h_l = alpha S(h_(l-1)) + P(s f(h_(l-1))),        f = conv a N conv a N  (read from the right)

    The stem is a 3 x 3 convolution; each stage after the first halves the image and doubles the channels in
    its first block, whose skip S is a 1 x 1 convolution; the head is N, a, the mean over the image, a linear
    layer.

    When to use it: image classification, from 8 x 8 digits up; without norms (``norm=None``) as the case for
    SkipInit, Fixup and the init of the weights.

    Values in use: depth 9, 27, 54 with width 16 and 3 stages are ResNet-20, -56, -110 for CIFAR (He 2016);
    scale 1, or `SkipInit` without norms; drop_path 0.5 at 54 blocks (Huang 2016).

    Cost: each stage costs about as much as the one before: half the side, twice the channels.

    Args:
        in_channels: of the images, at least 1.
        num_classes: size of the output, at least 1.
        depth: residual blocks, spread evenly over the stages (the first ones get one more); at least
            num_stages. The net has 2 * depth + 2 layers with weights, the projections aside.
        width: channels of the first stage, at least 1.
        num_stages: at least 1.
        activation: makes an activation: a module class or a factory without arguments.
        norm: makes a norm from the number of channels; None for none.
        scale: of the branch: a number, `SkipInit`, `LayerScale`, or a factory called as ``(channels, dim=1)``.
        skip_scale: of the skip, finite.
        drop_path: stochastic depth of the last block, 0 to 1; it rises linearly up to there.

    Returns a `torch.nn.Sequential` with stem, blocks, (norm,) act, pool, flatten, head, from
    (B, in_channels, H, W) to (B, num_classes), with torch's own initial weights. An empty batch gives an empty
    output; an inf or nan in an image stays visible in its output, and in training in all of the batch through
    a batch norm.

    Example:
        >>> import torch
        >>> resnet(1, 10, depth=3, width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: He, Zhang, Ren & Sun (2016), figure 1 (b), https://arxiv.org/abs/1603.05027
    """
    _check(in_channels, num_classes, width)
    count("num_stages", num_stages)
    count("depth", depth, least=num_stages)
    check_factories(activation=activation, norm=norm)
    rates = iter(block_rates(depth, drop_path))
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(num_stages):
        for index in range(_share(depth, num_stages, stage)):
            before, stride = channels, 1
            if stage and not index:
                channels, stride = channels * 2, 2
            blocks.append(
                Residual(
                    _basic_branch(before, channels, stride, activation, norm),
                    placement=None,
                    scale=make_scale(scale, channels, dim=1),
                    skip_scale=skip_scale,
                    drop_path=next(rates),
                    shortcut=nn.Conv2d(before, channels, 1, stride, bias=norm is None)
                    if stride > 1
                    else None,
                )
            )
    return _image_net(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=norm is None),
        blocks,
        channels,
        num_classes,
        activation,
        norm,
    )


def densenet(
    in_channels: int,
    num_classes: int,
    *,
    depth: int,
    growth: int = 12,
    num_stages: int = 3,
    bottleneck: int = 4,
    compression: float = 0.5,
    activation: Activation = nn.ReLU,
    norm: Norm | None = nn.BatchNorm2d,
    dropout: float = 0.0,
    memory_efficient: bool = False,
) -> nn.Sequential:
    """A densely connected convolutional net (DenseNet-BC) for images.

        x_l = H_l([x_0, .., x_(l-1)]),        H = conv3 a N conv1 a N  (read from the right)

    conv1 puts out ``bottleneck * growth`` channels, conv3 ``growth``. Between the stages N, a, a 1 x 1
    convolution to ``compression`` of the channels, and a mean over 2 x 2.

    When to use it: image classification with few parameters; studies of connectivity.

    Values in use: growth 12, 24, 40 and 3 stages for CIFAR, where depth 48 with bottleneck is DenseNet-BC-100;
    bottleneck 4, compression 0.5 (Huang); dropout 0.2 without data augmentation.

    Cost: memory grows as the square of the layers in a stage unless ``memory_efficient``.

    Args:
        in_channels: of the images, at least 1.
        num_classes: size of the output, at least 1.
        depth: dense layers (of two convolutions each), spread evenly over the stages; at least num_stages.
        growth: channels that each layer adds, at least 1. The stem puts out twice as many.
        num_stages: at least 1.
        bottleneck: at least 1.
        compression: above 0, at most 1.
        activation: makes an activation: a module class or a factory without arguments.
        norm: makes a norm from the number of channels; None for none.
        dropout: probability at the end of each layer, 0 to 1.
        memory_efficient: compute each layer again in the backward pass (`DenseBlock`).

    Returns a `torch.nn.Sequential` with stem, blocks, (norm,) act, pool, flatten, head, from
    (B, in_channels, H, W) to (B, num_classes), with torch's own initial weights. Empty and non-finite input
    as for `resnet`.

    Example:
        >>> import torch
        >>> densenet(1, 10, depth=3, growth=4)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: Huang, Liu, van der Maaten & Weinberger (2017), section 3, https://arxiv.org/abs/1608.06993
    """
    _check(in_channels, num_classes, growth, "growth")
    count("num_stages", num_stages)
    count("depth", depth, least=num_stages)
    check_factories(activation=activation, norm=norm)
    count("bottleneck", bottleneck)
    fraction("dropout", dropout)
    if not 0 < compression <= 1:
        raise ValueError(f"compression must be above 0 and at most 1, got {compression}")
    channels = 2 * growth
    blocks: list[nn.Module] = []
    for stage in range(num_stages):
        if stage:
            fewer = max(1, int(channels * compression))
            blocks.append(
                nn.Sequential(
                    *_activated(channels, activation, norm),
                    nn.Conv2d(channels, fewer, 1, bias=norm is None),
                    nn.AvgPool2d(2, ceil_mode=True),  # an image of one pixel stays
                )
            )
            channels = fewer
        layers = _share(depth, num_stages, stage)
        blocks.append(
            DenseBlock(
                [
                    _dense_layer(channels + i * growth, growth, bottleneck, activation, norm, dropout)
                    for i in range(layers)
                ],
                memory_efficient=memory_efficient,
            )
        )
        channels += layers * growth
    return _image_net(
        nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=norm is None),
        blocks,
        channels,
        num_classes,
        activation,
        norm,
    )


def _basic_branch(
    before: int, channels: int, stride: int, activation: Activation, norm: Norm | None
) -> nn.Sequential:
    return nn.Sequential(
        *_activated(before, activation, norm),
        nn.Conv2d(before, channels, 3, stride, 1, bias=norm is None),
        *_activated(channels, activation, norm),
        nn.Conv2d(channels, channels, 3, 1, 1, bias=norm is None),
    )


def _dense_layer(
    channels: int, growth: int, bottleneck: int, activation: Activation, norm: Norm | None, dropout: float
) -> nn.Sequential:
    inner = bottleneck * growth
    return nn.Sequential(
        *_activated(channels, activation, norm),
        nn.Conv2d(channels, inner, 1, bias=norm is None),
        *_activated(inner, activation, norm),
        nn.Conv2d(inner, growth, 3, padding=1, bias=norm is None),
        *([nn.Dropout(dropout)] if dropout else []),
    )


def _activated(channels: int, activation: Activation, norm: Norm | None) -> list[nn.Module]:
    return [activation()] if norm is None else [norm(channels), activation()]


def _image_net(
    stem: nn.Module,
    blocks: list[nn.Module],
    channels: int,
    num_classes: int,
    activation: Activation,
    norm: Norm | None,
) -> nn.Sequential:
    parts: dict[str, nn.Module] = {"stem": stem, "blocks": nn.Sequential(*blocks)}
    if norm is not None:
        parts["norm"] = norm(channels)
    parts |= {"act": activation(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    parts["head"] = nn.Linear(channels, num_classes)
    return nn.Sequential(OrderedDict(parts))


def _share(depth: int, num_stages: int, stage: int) -> int:
    return depth // num_stages + (stage < depth % num_stages)


def _check(in_channels: int, num_classes: int, width: int, name: str = "width") -> None:
    count("in_channels", in_channels)
    count("num_classes", num_classes)
    count(name, width)
