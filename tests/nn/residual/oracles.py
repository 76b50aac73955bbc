"""Slow and obvious twins of the connections, in numpy float64, on the weights of the module under test."""

from __future__ import annotations

import numpy as np
from torch import nn


def array(tensor):
    return tensor.detach().double().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(layer: nn.Linear, x):
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def layer_norm(norm: nn.LayerNorm, x):
    mean = x.mean(-1, keepdims=True)
    std = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + norm.eps)
    return (x - mean) / std * array(norm.weight) + array(norm.bias)


def conv3x3(layer: nn.Conv2d, x):
    """Padding 1, stride 1, pixel by pixel."""
    weight, (b, _, height, width) = array(layer.weight), x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((b, weight.shape[0], height, width))
    for i in range(height):
        for j in range(width):
            y[:, :, i, j] = np.einsum("bcij,ocij->bo", padded[:, :, i : i + 3, j : j + 3], weight)
    return y + array(layer.bias)[None, :, None, None]


def residual(module, x, skip_scale=1.0):
    """For a linear function, an identity skip, no dropout; the four placements."""
    scale = module.scale
    if isinstance(scale, nn.Module):
        scale = array(next(scale.parameters()))
    if module.placement == "pre":
        return skip_scale * x + scale * linear(module.fn, layer_norm(module.norm, x))
    if module.placement == "post":
        return layer_norm(module.post_norm, skip_scale * x + scale * linear(module.fn, x))
    if module.placement == "sandwich":
        inner = linear(module.fn, layer_norm(module.norm, x))
        return skip_scale * x + scale * layer_norm(module.branch_norm, inner)
    return skip_scale * x + scale * linear(module.fn, x)


def highway_linear(module, x):
    h, t = np.tanh(linear(module.transform[0], x)), sigmoid(linear(module.gate, x))
    return h * t + x * (1 - t)


def highway_conv2d(module, x):
    h, t = np.tanh(conv3x3(module.transform[0], x)), sigmoid(conv3x3(module.gate, x))
    return h * t + x * (1 - t)


def dense_block(module, x):
    outputs = [x]
    for layer in module.layers:
        outputs.append(linear(layer, np.concatenate(outputs, -1)))
    return np.concatenate(outputs, -1)


def gru_gate(g, x, y):
    r = sigmoid(linear(g.w_r, y) + linear(g.u_r, x))
    z = sigmoid(linear(g.w_z, y) + linear(g.u_z, x) - array(g.bias))
    h = np.tanh(linear(g.w_h, y) + linear(g.u_h, r * x))
    return (1 - z) * x + z * h


def input_gate(g, x, y):
    return sigmoid(linear(g.w, x) + array(g.bias)) * x + y


def output_gate(g, x, y):
    return x + sigmoid(linear(g.w, x) - array(g.bias)) * y


def highway_gate(g, x, y):
    s = sigmoid(linear(g.w, x) + array(g.bias))
    return s * x + (1 - s) * y


def sigmoid_tanh_gate(g, x, y):
    return x + sigmoid(linear(g.w, y) - array(g.bias)) * np.tanh(linear(g.u, y))


def hyper(module, streams):
    """Example by example, stream by stream."""
    n = module.num_streams
    out = np.empty_like(streams)
    for b, rows in enumerate(streams):
        read, mix, write = (array(p).copy() for p in (module.mix_in, module.mix_streams, module.mix_out))
        if module.dynamic:
            normed = layer_norm(module.stream_norm, rows)
            for i in range(n):
                moved = np.tanh(array(module.mix_weight) @ normed[i])
                read[i] += array(module.scale_in) * moved[0]
                mix[i] += array(module.scale_in) * moved[1 : n + 1]
                write[i] += array(module.scale_out) * moved[n + 1]
        h = sum(read[i] * rows[i] for i in range(n))
        y = linear(module.fn, layer_norm(module.norm, h))
        for j in range(n):
            out[b, j] = write[j] * y + sum(mix[i, j] * rows[i] for i in range(n))
    return out
