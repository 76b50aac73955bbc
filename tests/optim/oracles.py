"""Slow, obvious twins of the optimizers in float64 numpy, one array at a time, as each paper states its update.

A twin is made with the starting weights; called with gradients (None for none) it returns the new weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Arrays = list[np.ndarray]


def l2(x: np.ndarray) -> float:
    return math.sqrt(float((x**2).sum()))


def floored(w: np.ndarray, min_rms: float) -> float:
    return max(l2(w), min_rms * math.sqrt(w.size))


class Twin:
    def __init__(self, weights: Arrays, **settings: Any) -> None:
        self.weights = [w.astype(float).copy() for w in weights]
        self.h = settings
        self.state: list[dict[str, Any]] = [{"t": 0} for _ in weights]
        for i, w in enumerate(self.weights):
            self.weights[i] = self.begin(w)

    def begin(self, w: np.ndarray) -> np.ndarray:
        return w

    def __call__(self, grads: list[np.ndarray | None], **changed: Any) -> Arrays:
        self.h = {**self.h, **changed}
        for i, g in enumerate(grads):
            if g is not None:
                self.state[i]["t"] += 1
                self.weights[i] = self.one(self.weights[i], g, self.state[i])
        return self.weights

    def one(self, w: np.ndarray, g: np.ndarray, s: dict[str, Any]) -> np.ndarray:
        raise NotImplementedError


class LARS(Twin):
    def one(self, w, g, s):
        h = self.h
        rate = 1.0
        if w.ndim > 1 or h["adapt_vectors"]:
            below = l2(g) + h["weight_decay"] * l2(w)
            rate = h["trust_coefficient"] * floored(w, h["min_rms"]) / below if below else 1.0
        s["v"] = h["momentum"] * s.get("v", 0.0) + h["lr"] * rate * (g + h["weight_decay"] * w)
        return w - s["v"]


def moments(g, s, betas):
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["s"] = betas[1] * s.get("s", 0.0) + (1 - betas[1]) * g**2
    return s["m"] / (1 - betas[0] ** s["t"]), np.sqrt(s["s"] / (1 - betas[1] ** s["t"]))


class LAMB(Twin):
    def one(self, w, g, s):
        h = self.h
        m, v = moments(g, s, h["betas"])
        u = m / (v + h["eps"]) + h["weight_decay"] * w
        rate = 1.0
        if (w.ndim > 1 or h["adapt_vectors"]) and l2(u):
            rate = min(floored(w, h["min_rms"]), h["max_norm"]) / l2(u)
        return w - h["lr"] * rate * u


class NovoGrad(Twin):
    def one(self, w, g, s):
        h = self.h
        old = s.get("v", 0.0)
        s["v"] = h["betas"][1] * old + (1 - h["betas"][1]) * l2(g) ** 2 if old else l2(g) ** 2
        s["m"] = h["betas"][0] * s.get("m", 0.0) + g / (math.sqrt(s["v"]) + h["eps"]) + h["weight_decay"] * w
        return w - h["lr"] * s["m"]


class Fromage(Twin):
    def one(self, w, g, s):
        h = self.h
        if not l2(g):
            return w
        return (w - h["lr"] * floored(w, h["min_rms"]) / l2(g) * g) / math.sqrt(1 + h["lr"] ** 2)


class Nero(Twin):
    @staticmethod
    def rows(w):
        return w.reshape(w.shape[0], -1) if w.ndim > 1 else w.reshape(-1, 1)

    def begin(self, w):
        if not self.h["constraints"] or w.ndim < 2:
            return w
        rows = self.rows(w).copy()
        for r in rows:
            centred = r - r.mean()
            if r.size > 1 and l2(centred):
                r[:] = centred / l2(centred)
        return rows.reshape(w.shape)

    def one(self, w, g, s):
        h = self.h
        rows, slopes = self.rows(w).copy(), self.rows(g)
        if "scale" not in s:
            s["scale"] = float(np.mean([l2(r) for r in rows])) or 0.01
            s["v"] = [0.0] * len(rows)
        for i, (r, d) in enumerate(zip(rows, slopes, strict=True)):
            s["v"][i] = h["beta"] * s["v"][i] + (1 - h["beta"]) * l2(d) ** 2
            if s["v"][i]:
                r -= h["lr"] * s["scale"] * d / math.sqrt(s["v"][i] / (1 - h["beta"] ** s["t"]))
        return self.begin(rows.reshape(w.shape))


class AdamAtan2(Twin):
    def one(self, w, g, s):
        h = self.h
        m, v = moments(g, s, h["betas"])
        return w - h["lr"] * h["weight_decay"] * w - h["lr"] * h["a"] * np.arctan2(m, h["b"] * v)


def newton_schulz(g: np.ndarray, steps: int = 5) -> np.ndarray:
    """By the singular values alone: each goes through the polynomial on its own."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / math.sqrt(float((s**2).sum())) if s.any() else s
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


class MuonAdamW(Twin):
    def one(self, w, g, s):
        h = self.h
        w = w - h["lr"] * h["weight_decay"] * w
        if w.ndim < 2:
            m, v = moments(g, s, h["betas"])
            return w - h["lr"] * m / (v + h["eps"])
        mu = h["momentum"]
        s["b"] = mu * s.get("b", 0.0) + (1 - mu) * g
        d = mu * s["b"] + (1 - mu) * g if h["nesterov"] else s["b"]
        rows, columns = w.shape[0], w.size // w.shape[0]
        longer = (
            0.2 * math.sqrt(max(rows, columns))
            if h["adjust_lr_fn"] == "match_rms_adamw"
            else math.sqrt(max(1, rows / columns))
        )
        return w - h["lr"] * longer * newton_schulz(d.reshape(rows, columns)).reshape(w.shape)


class Scion(Twin):
    def one(self, w, g, s):
        h = self.h
        s["d"] = h["momentum"] * s.get("d", 0.0) + (1 - h["momentum"]) * g
        d, norm = s["d"], h["norm"] or ("spectral" if w.ndim > 1 else "rms")
        if norm in ("spectral", "input"):
            taps = w[0, 0].size
            size = math.sqrt(w.shape[0] / w.shape[1])
            size = max(1.0, size) if norm == "input" else size
            step = newton_schulz(d.reshape(w.shape[0], -1)).reshape(w.shape) * size / taps
        elif norm == "sign":
            step = np.sign(d) / w[0].size
        elif norm == "row":
            rms = np.sqrt((d**2).mean(axis=tuple(range(1, d.ndim)), keepdims=True))
            step = np.divide(d, rms, out=np.zeros_like(d), where=rms > 0)
        else:
            rms = math.sqrt(float((d**2).mean()))
            step = d / rms if rms else np.zeros_like(d)
        if h["constrained"]:
            w = (1 - h["lr"]) * w
        return w - h["lr"] * h["scale"] * step


class Steady(Twin):
    def one(self, w, g, s):
        h = self.h
        r = min(h["lr"], h["max_ratio"])
        w = (1 - r * h["weight_decay"]) * w
        norm, mean = l2(g), s.get("norm", 0.0)
        if mean:
            limit = h["max_growth"] * mean
            g = g * min(1.0, limit / norm) if norm else g
            s["norm"] = 0.95 * mean + 0.05 * min(norm, limit)
        else:
            s["norm"] = norm
        if w.ndim < 2:
            m, v = moments(g, s, h["betas"])
            rms = math.sqrt(float((w**2).mean()))
            return w - r * max(rms, h["min_scale"]) * m / (v + h["eps"])
        mu = h["momentum"]
        s["b"] = mu * s.get("b", 0.0) + (1 - mu) * g
        d = mu * s["b"] + (1 - mu) * g
        parts = zip(np.split(w, h["blocks"]), np.split(d, h["blocks"]), strict=True)
        return np.concatenate([self.turned(part, step, r) for part, step in parts])

    def turned(self, w, d, r):
        u = newton_schulz(d.reshape(w.shape[0], -1)).reshape(w.shape)
        if not l2(u):
            return w
        size = max(l2(w), self.h["min_scale"] * math.sqrt(w.shape[0]))
        return (w - r * size * u / l2(u)) / math.sqrt(1 + r**2)
