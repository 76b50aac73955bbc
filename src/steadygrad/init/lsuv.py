"""LSUV: scale each weight so that its output on real data has unit variance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from steadygrad.init._trace import Recorder, trace
from steadygrad.init._weights import last_weight
from steadygrad.init.follow import check_model


def unit_variance_scales(
    model: nn.Module, example_input: Any, weights: Iterable[str], tol: float = 0.01, max_iter: int = 10
) -> dict[str, float]:
    """The factor for each weight that gives its output unit variance, layer after layer, in one forward pass.

        W_l <- W_l / sqrt(Var(B_l)),   B_l the output of layer l behind the layers already scaled

    until ``|Var - 1| < tol``. With zero biases one division is exact. Biases, norms and activations act as
    they are.

    Args:
        model: left bit-identical; the factors act inside the pass only.
        example_input: a batch of real data, as for ``follow``.
        weights: names of the weights to scale (``Layer.weight``); one used several times is scaled at its
            first use.
        tol: largest distance of the variance from 1, > 0. The paper: 0.1.
        max_iter: divisions per layer, >= 1. The paper: 10.

    Raises ValueError naming the weight if the variance of an output is 0 or not finite.

    When to use it: plain nets with activations that no formula covers, before the first step, with a batch of
    some hundred values per layer.

    Values in use: tol 0.1, max_iter 10 (the paper).

    Cost: one forward pass, with each scaled layer run twice.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh())
        >>> scales = unit_variance_scales(net, torch.randn(64, 8), ["0.weight"])
        >>> _ = net[0].weight.data.mul_(scales["0.weight"])

    Source: Mishkin & Matas (2016), algorithm 1, https://arxiv.org/abs/1511.06422
    """
    check_model(model)
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    scaler = _Scaler(getattr(model, "_orig_mod", model), set(weights), tol, max_iter)
    trace(model, example_input, scaler)
    missing = scaler.wanted - set(scaler.factors)
    if missing:
        raise ValueError(f"not used in the run on example_input: {', '.join(sorted(missing))}")
    return scaler.factors


class UnscalableError(ValueError):
    """An output has no variance to scale by."""


class _Scaler(Recorder):
    """Records a run in which every wanted weight acts with its factor."""

    def __init__(self, model: nn.Module, wanted: set[str], tol: float, max_iter: int) -> None:
        super().__init__(model)
        self.wanted, self.tol, self.max_iter = wanted, tol, max_iter
        self.factors: dict[str, float] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        before = len(self.nodes)
        self.record(func, args, kwargs, out)
        node = next((n for n in self.nodes[before:] if n.weights), None)
        if node is None or (name := last_weight(node)) not in self.wanted:
            return out
        params = set(node.weights[-1].params)
        if name not in self.factors:
            self.factors[name] = 1.0
            for _ in range(self.max_iter):
                variance = _variance(out)
                if not 0 < variance < math.inf:
                    raise UnscalableError(
                        f"the output of {name!r} has variance {variance:g} on example_input"
                    )
                if abs(variance - 1) < self.tol:
                    break
                self.factors[name] /= math.sqrt(variance)
                out = self._again(func, args, kwargs, params, self.factors[name])
                if math.isclose(_variance(out), variance, rel_tol=1e-6):
                    raise UnscalableError(
                        f"the output of {name!r} has variance {variance:g} on example_input whatever its weight is: "
                        "its input is 0"
                    )
        elif self.factors[name] != 1.0:
            out = self._again(func, args, kwargs, params, self.factors[name])
        else:
            return out
        del self.nodes[before:]  # the call is recorded with the output that goes on
        self.record(func, args, kwargs, out)
        return out

    def _again(self, func: Any, args: Any, kwargs: Any, params: set[str], factor: float) -> Any:
        def scaled(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dim() >= 2 and params == set(self.origin_of(value)):
                return value * factor
            return value

        return func(*tree_map(scaled, args), **tree_map(scaled, kwargs))


def _variance(out: Any) -> float:
    first = out if isinstance(out, Tensor) else out[0]
    return first.detach().double().var(correction=0).item() if first.numel() else math.nan
