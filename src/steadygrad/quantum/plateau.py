"""The barren plateau as a forecast: how the gradient's variance falls with the number of qubits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from steadygrad import _check
from steadygrad._preserve import random_streams
from steadygrad.quantum.layer import alike, run_together
from steadygrad.quantum.result import Decay, PlateauForecast, Sampled

ANGLE = math.pi / 4  # of every input, as McClean et al. have it
RESAMPLES = 1000
LEVEL = 0.95
FEWEST = 10  # samples; of fewer a resample may have no variance at all
TOGETHER = 2**14  # amplitudes that are simulated at once: those of 16 circuits of 10 qubits

Build = Callable[[int, int], nn.Module]


def barren_plateau(
    build: Build,
    qubits: Sequence[int] = (2, 4, 6, 8),
    depths: Sequence[int] = (2, 8, 32),
    *,
    cost: Callable[[nn.Module], Tensor] | None = None,
    samples: int = 50,
    seed: int = 0,
) -> PlateauForecast:
    """Forecast whether the gradient of a circuit vanishes with its size, from small ones.

    Circuits are built anew ``samples`` times for each size, each with the random angles that ``build`` gives it; the
    variance of each angle's derivative over them, averaged over the angles, is held against the number of qubits:

        Var[dC/dtheta] = c exp(-exponent n)        a random circuit has ln 2 = .69 (local) to 2 ln 2 (global)

    The exponent comes with an interval of 95 % from resampled circuits (with 50 samples it holds the true one in about
    90 % of cases). It is called a barren plateau where the interval is above 0.17 (the variance halves with every four
    qubits) and the exponential fits nearly all resamples better than a power of n; where neither does, it is undecided.

    When to use it: before a circuit is made larger than it has been trained, and to compare initialisers.

    Values in use: 4 sizes up to 8 qubits, 50 samples, 2 to 32 layers: about 5 seconds for a `QuantumLayer`.

    Cost: ``samples`` backward passes for each size; circuits of `QuantumLayer` run together.

    Args:
        build: ``build(n_qubits, depth)`` gives a module with fresh angles, all its parameters being angles.
        qubits: numbers of qubits, at least three different ones, each at least 2.
        depths: numbers of layers, each at least 1; every pair is measured.
        cost: ``cost(module)`` gives the scalar whose gradient is meant. None: the mean output at inputs of pi / 4. (A
            mean over n local readouts falls as 1 / n ** 2 by itself.)
        samples: circuits of each size, at least 10.
        seed: of the angles; the random streams of torch, numpy and Python are as they were, afterwards.

    Returns a `PlateauForecast`; print it. A gradient that is not finite, or is 0 in all samples of a size, gives nan.

    Raises ValueError and TypeError on bad arguments.

    Example:
        >>> import steadygrad as sg
        >>> def at_random(n_qubits, depth):
        ...     layer = sg.quantum.QuantumLayer(n_qubits, depth, readout="pair")
        ...     sg.quantum.uniform_angles_(layer)
        ...     return layer
        >>> found = sg.quantum.barren_plateau(at_random, qubits=(2, 4, 6), depths=(24,))
        >>> found.barren, round(found.decay(24).exponent, 1)
        (True, 0.7)

    Source: McClean et al. (2018), https://arxiv.org/abs/1803.11173
    """
    sizes = sorted({_check.count("each of qubits", n, 2) for n in qubits})
    if len(sizes) < 3:
        raise ValueError(f"qubits must have at least three different numbers, got {list(qubits)}")
    layers = sorted({_check.count("each of depths", depth) for depth in depths})
    if not layers:
        raise ValueError("depths must have at least one number of layers, got none")
    _check.count("samples", samples, FEWEST)
    draws = torch.Generator().manual_seed(_check.count("seed", seed, 0))
    sampled, decays = [], []
    for depth in layers:
        gradients = [gradient_samples(build, n, depth, cost=cost, samples=samples, seed=seed) for n in sizes]
        at_depth = [
            Sampled(n, depth, float(_variance(g)), float(g.square().mean()))
            for n, g in zip(sizes, gradients, strict=True)
        ]
        sampled += at_depth
        decays.append(_decay(depth, at_depth, gradients, draws))
    return PlateauForecast(tuple(sampled), tuple(decays), samples)


def gradient_samples(
    build: Build,
    n_qubits: int,
    depth: int,
    *,
    cost: Callable[[nn.Module], Tensor] | None = None,
    samples: int = 50,
    seed: int = 0,
) -> Tensor:
    """The gradients of circuits with fresh angles, one in each row: (samples, angles), float64.

    Angles that take no part in the cost have derivatives of 0, frozen ones are left out. The rest is as for
    `barren_plateau`.
    """
    _check.count("samples", samples)
    with random_streams(_check.count("seed", seed, 0)):
        modules = [build(n_qubits, depth) for _ in range(samples)]
    device = next((p.device for p in modules[0].parameters()), None)
    inputs = torch.full((n_qubits,), ANGLE, device=device)
    with torch.enable_grad():
        if cost is None and alike(modules):
            at_once = max(1, TOGETHER >> n_qubits)
            groups = [modules[k : k + at_once] for k in range(0, samples, at_once)]
            costs = (run_together(group, inputs).mean(-1).sum() for group in groups)  # type: ignore[arg-type]
            found = [_gradients(c, group) for c, group in zip(costs, groups, strict=True)]
            return torch.stack([one for group in found for one in group])
        at_inputs = cost or (lambda module: module(inputs[None]).mean())
        return torch.stack([_gradients(at_inputs(module), [module])[0] for module in modules])


def _gradients(cost: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
    """The flat gradient of each module."""
    angles = [[p for p in module.parameters() if p.requires_grad] for module in modules]
    if not all(angles):
        raise ValueError("build gave a module without an angle to train")
    flat = [p for own in angles for p in own]
    if not isinstance(cost, Tensor) or cost.numel() != 1 or not cost.requires_grad:
        shown = f"shape {tuple(cost.shape)}" if isinstance(cost, Tensor) else type(cost).__name__
        raise ValueError(f"cost must give a scalar tensor that depends on the angles, got {shown}")
    found = iter(torch.autograd.grad(cost.sum(), flat, allow_unused=True))
    return [
        torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten().double()
                for p, g in zip(own, found, strict=False)
            ]
        )
        for own in angles
    ]


def _variance(gradients: Tensor) -> Tensor:
    """Of each angle's derivative over the samples, averaged over the angles."""
    return gradients.var(0).mean()


def _decay(
    depth: int, sampled: Sequence[Sampled], gradients: Sequence[Tensor], draws: torch.Generator
) -> Decay:
    """The exponent at one depth, and how sure it is, from resampled circuits."""
    sizes = torch.tensor([float(one.n_qubits) for one in sampled], dtype=torch.float64)
    logs = torch.tensor([one.variance for one in sampled], dtype=torch.float64).log()
    again = torch.stack([_resampled(g, draws) for g in gradients], -1).log()
    if not (logs.isfinite().all() and again.isfinite().all()):
        return Decay(depth, math.nan, math.nan, math.nan, math.nan)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = (-_slope(sizes, again)).quantile(ends).tolist()
    exponential = (_misfit(sizes, again) < _misfit(sizes.log(), again)).double().mean()
    return Decay(depth, -float(_slope(sizes, logs)), low, high, float(exponential))


def _resampled(gradients: Tensor, draws: torch.Generator) -> Tensor:
    """The mean variance in each of many samples drawn from the sample, (resamples,)."""
    n = len(gradients)
    chosen = torch.randint(n, (RESAMPLES, n), generator=draws)
    weights = torch.zeros(RESAMPLES, n, dtype=torch.float64)
    weights.scatter_add_(1, chosen, torch.full(chosen.shape, 1 / n, dtype=torch.float64))
    square = weights @ gradients.square().mean(1)
    mean = weights @ gradients
    return (square - mean.square().mean(1)) * n / (n - 1)


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Of the line of least squares through the last dimension of y."""
    from_mean = x - x.mean()
    return (y * from_mean).sum(-1) / from_mean.square().sum()


def _misfit(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square distance from that line."""
    line = y.mean(-1, keepdim=True) + _slope(x, y)[..., None] * (x - x.mean())
    return (y - line).square().mean(-1).sqrt()
