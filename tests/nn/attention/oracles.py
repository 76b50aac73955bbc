"""The slow obvious twins: loops over numbers in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Weights:
    """(E, E) weights and (E,) biases of one attention, rows are outputs."""

    q: Array
    k: Array
    v: Array
    o: Array
    q_bias: Array
    k_bias: Array
    v_bias: Array
    o_bias: Array


def rms(x: Array, eps: float = 1e-6) -> Array:
    return x / math.sqrt(float(np.mean(x * x)) + eps)


def heads(x: Array, weight: Array, bias: Array, num_heads: int) -> Array:
    """(B, T, E) to (B, H, T, D)."""
    y = x @ weight.T + bias
    return y.reshape(*y.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)


def attention(
    w: Weights,
    x: Array,
    num_heads: int,
    allowed: Array | None = None,
    bias: Array | None = None,
    cap: float | None = None,
    scales: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Output and the largest logit of each head before the cap. ``scales``: (H, D) of a QK-norm."""
    q, k, v = (heads(x, m, b, num_heads) for m, b in ((w.q, w.q_bias), (w.k, w.k_bias), (w.v, w.v_bias)))
    batch, _, length, dim = q.shape
    out = np.zeros((batch, length, num_heads, dim))
    largest = np.full(num_heads, -math.inf)
    for b in range(batch):
        for h in range(num_heads):
            for i in range(length):
                row = []
                for j in range(length):
                    qi, kj = q[b, h, i], k[b, h, j]
                    if scales is not None:
                        qi, kj = scales[0][h] * rms(qi), scales[1][h] * rms(kj)
                    s = float(qi @ kj) / math.sqrt(dim)
                    added = 0.0 if bias is None else float(bias[i, j])
                    if allowed is not None and not allowed[b, i, j]:
                        added = -math.inf
                    largest[h] = max(largest[h], s + added)
                    row.append((s if cap is None else cap * math.tanh(s / cap)) + added)
                top = max(row)
                weights = [math.exp(r - top) for r in row]
                for j in range(length):
                    out[b, i, h] += weights[j] / sum(weights) * v[b, h, j]
    return out.reshape(batch, length, -1) @ w.o.T + w.o_bias, largest


def z_loss(logits: Array, coefficient: float, counts: Array) -> float:
    squares = [
        math.log(sum(math.exp(v - max(row)) for v in row)) + max(row)
        for row, c in zip(logits, counts, strict=True)
        if c
    ]
    return coefficient * sum(z * z for z in squares) / len(squares)


def anything(x: Any) -> Array:
    return x.detach().double().numpy()
