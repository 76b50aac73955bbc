"""Slow, obvious twins in numpy float64. Weights come as a dict of arrays with torch's names."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def arrays(module) -> Arrays:
    return {name: t.detach().double().numpy().copy() for name, t in module.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(z, gain, bias, eps):
    total = 0.0
    for value in z:
        total += value
    mean = total / len(z)
    var = sum((value - mean) ** 2 for value in z) / len(z)
    return gain * (z - mean) / np.sqrt(var + eps) + bias


def layer_norm_lstm(p: Arrays, x: np.ndarray, h, c, suffix: str, eps: float):
    """One sequence (T, input): the h of every step, and the last h and c."""
    p = {name.removesuffix(suffix): value for name, value in p.items() if name.endswith(suffix)}
    out = []
    for x_t in x:
        gates = layer_norm(p["weight_ih"] @ x_t, p["norm_weight_ih"], p["bias_ih"], eps)
        gates = gates + layer_norm(p["weight_hh"] @ h, p["norm_weight_hh"], p["bias_hh"], eps)
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(layer_norm(c, p["norm_weight_c"], p["norm_bias_c"], eps))
        out.append(h)
    return np.array(out), h, c


def layer_norm_gru(p: Arrays, x: np.ndarray, h, suffix: str, eps: float):
    p = {name.removesuffix(suffix): value for name, value in p.items() if name.endswith(suffix)}
    n = len(h)
    gate, cand = slice(0, 2 * n), slice(2 * n, 3 * n)
    out = []

    def normed(name, z, part):
        return layer_norm(z[part], p[f"norm_weight_{name}"][part], p[f"bias_{name}"][part], eps)

    for x_t in x:
        from_x, from_h = p["weight_ih"] @ x_t, p["weight_hh"] @ h
        r, z = np.split(sigmoid(normed("ih", from_x, gate) + normed("hh", from_h, gate)), 2)
        new = np.tanh(normed("ih", from_x, cand) + r * normed("hh", from_h, cand))
        h = (1 - z) * new + z * h
        out.append(h)
    return np.array(out), h


def batch_norm_lstm(p: Arrays, sequences: list[np.ndarray], suffix: str, eps: float):
    """Sequences of any lengths, from h = c = 0, in training: outputs, and mean and unbiased variance of each step."""
    p = {name.removesuffix(suffix): value for name, value in p.items() if name.endswith(suffix)}
    hidden = p["norm_weight_c"].shape[0]
    h = {b: np.zeros(hidden) for b in range(len(sequences))}
    c = {b: np.zeros(hidden) for b in range(len(sequences))}
    outputs = [[] for _ in sequences]
    statistics = []
    for t in range(max(len(s) for s in sequences)):
        alive = [b for b, s in enumerate(sequences) if len(s) > t]
        found = {}

        def norm(rows, site, found=found):
            mean = sum(rows) / len(rows)
            var = sum((r - mean) ** 2 for r in rows) / len(rows)
            found[site] = mean, var * len(rows) / (len(rows) - 1)
            return [p[f"norm_weight_{site}"] * (r - mean) / np.sqrt(var + eps) for r in rows]

        from_x = norm([p["weight_ih"] @ sequences[b][t] for b in alive], "ih")
        from_h = norm([p["weight_hh"] @ h[b] for b in alive], "hh")
        out = {}
        for b, gx, gh in zip(alive, from_x, from_h, strict=True):
            i, f, g, o = np.split(gx + p["bias_ih"] + gh + p["bias_hh"], 4)
            c[b] = sigmoid(f) * c[b] + sigmoid(i) * np.tanh(g)
            out[b] = sigmoid(o)
        for b, normed in zip(alive, norm([c[b] for b in alive], "c"), strict=True):
            h[b] = out[b] * np.tanh(normed + p["norm_bias_c"])
            outputs[b].append(h[b])
        statistics.append(found)
    return [np.array(o) for o in outputs], statistics


class BatchRenorm:
    """Channels last, (rows, channels), one step after the other."""

    def __init__(self, channels, eps, momentum, r_max, d_max):
        self.mean, self.var = np.zeros(channels), np.ones(channels)
        self.eps, self.momentum, self.r_max, self.d_max = eps, momentum, r_max, d_max

    def __call__(self, x: np.ndarray) -> np.ndarray:
        mean, var = x.mean(0), x.var(0)
        std, running = np.sqrt(var + self.eps), np.sqrt(self.var + self.eps)
        r = np.clip(std / running, 1 / self.r_max, self.r_max)
        d = np.clip((mean - self.mean) / running, -self.d_max, self.d_max)
        y = (x - mean) / std * r + d
        self.mean = self.mean + self.momentum * (mean - self.mean)
        self.var = self.var + self.momentum * (x.var(0, ddof=1) - self.var)
        return y
