"""How curved the loss is: the largest eigenvalue of its Hessian, by products with vectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steadygrad.graph.walk import Graph

ITERATIONS = 10
TOLERANCE = 0.01  # of the value: distance to an eigenvalue at which it is good enough
EPS = (1e-2, 1e-3)  # a single step was wrong by up to 10 times; science.md section 2
FLOOR = 1e-3  # of the mean: no preconditioner is smaller


class Sharpness(NamedTuple):
    """The largest |eigenvalue| of the Hessian, or of the preconditioned one."""

    value: float  # nan if it could not be found
    products: int  # Hessian-vector products that it took
    how: str  # "double backward", "differences", or why there is none


Product = Callable[[list[Tensor]], list[Tensor]]


def sharpness(
    roots: Sequence[Tensor],
    params: Sequence[Tensor],
    *,
    adaptive: bool = False,
    gradients: Callable[[], list[Tensor]] | None = None,
    iterations: int = ITERATIONS,
    seconds: float = math.inf,
) -> Sharpness:
    """Largest |eigenvalue| by the Lanczos iteration,

        beta_k v_k+1 = H v_k - alpha_k v_k - beta_k-1 v_k-1,    alpha_k = v_k . H v_k,    v_1 random,

    as that of the tridiagonal matrix with alpha on its diagonal and beta beside it, on the Hessian H of the sum of
    ``roots``; with ``adaptive`` on P^-1/2 H P^-1/2, P = diag(|g|) with a floor, which is what an Adam sees that has
    just begun. H v is the derivative of g . v where the operations allow a second derivative, and a central difference
    of gradients where they do not and ``gradients`` can give them.

    Args:
        roots: losses with their graph; it is kept.
        params: with respect to which; those that the loss does not use count as flat.
        adaptive: precondition.
        gradients: makes the gradients anew at the parameters as they are; used for differences only.
        iterations: at most so many products.
        seconds: no further product begins after so long; the value then is a lower bound, and depends on the machine.

    Returns:
        :class:`Sharpness`; its value is nan for a loss or a gradient that is not finite.

    No ``.grad`` is written, no random number of the caller's is drawn; with differences the parameters are moved and
    put back bit for bit.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> round(sharpness([(w.square() * torch.tensor([1.0, 5.0])).sum()], [w]).value, 1)
        10.0

    Source: Pearlmutter (1994); Golub & Van Loan, Matrix Computations, sec. 10.1; science.md section 2.
    """
    params = [p for p in params if p.requires_grad]
    with torch.enable_grad():
        total = _sum([r.float().sum() for r in roots])
        try:
            grads = _grad(total, params, create_graph=True)
            direct = not any(map(_once_only, Graph(roots).nodes))
        except RuntimeError:
            direct = False
            try:
                grads = _grad(total, params, create_graph=False)
            except RuntimeError:  # compiled, or recomputed by a checkpoint: its graph can be walked once only
                return Sharpness(math.nan, 0, "the graph cannot be differentiated more than once")
    if not all(bool(torch.isfinite(g).all()) for g in grads):
        return Sharpness(math.nan, 0, "the gradient is not finite")
    scale = _preconditioner(grads) if adaptive else None
    if direct:
        try:
            value, products = _lanczos(_by_double_backward(grads, params), params, scale, iterations, seconds)
            return Sharpness(value, products, "double backward")
        except RuntimeError:  # an operation has no second derivative
            pass
    if gradients is None:
        return Sharpness(math.nan, 0, "the operations have no second derivative")
    found = [
        _lanczos(_by_differences(gradients, params, eps), params, scale, iterations, seconds / len(EPS))
        for eps in EPS
    ]
    value = max((v for v, _ in found if not math.isnan(v)), default=math.nan)
    return Sharpness(value, sum(n for _, n in found), "differences")


def _once_only(node: Any) -> bool:
    """Whether this is a custom function marked ``once_differentiable``: autograd leaves it out in silence."""
    backward = getattr(getattr(type(node), "_forward_cls", None), "backward", None)
    code = getattr(backward, "__code__", None)
    return (
        code is not None
        and code.co_filename == torch.autograd.function.__file__
        and hasattr(backward, "__wrapped__")
    )


def _grad(total: Tensor, params: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    grads = torch.autograd.grad(
        total, params, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]


def _by_double_backward(grads: list[Tensor], params: Sequence[Tensor]) -> Product:
    def product(v: list[Tensor]) -> list[Tensor]:
        used = [(g, x) for g, x in zip(grads, v, strict=True) if g.requires_grad]
        if not used:
            return [torch.zeros_like(p) for p in params]
        with torch.enable_grad():
            along = _sum([(g * x).sum() for g, x in used])
        hv = torch.autograd.grad(along, params, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if h is None else h.detach() for h, p in zip(hv, params, strict=True)]

    return product


def _by_differences(gradients: Callable[[], list[Tensor]], params: Sequence[Tensor], eps: float) -> Product:
    """The step is a share of the norm of all parameters: one per element is useless (science.md section 2)."""
    start = [p.detach().clone() for p in params]
    step = eps * max(1e-3, float(_norm(start)))

    @torch.no_grad()
    def at(v: list[Tensor], size: float) -> list[Tensor]:
        for p, s, x in zip(params, start, v, strict=True):
            p.data.copy_(s + size * x)  # not seen by autograd: the graph of the roots stays valid
        try:
            with torch.enable_grad():
                return [g.detach().clone() for g in gradients()]
        finally:
            for p, s in zip(params, start, strict=True):
                p.data.copy_(s)

    def product(v: list[Tensor]) -> list[Tensor]:
        size = step / max(1e-30, float(_norm(v)))  # a preconditioned v may be long
        return [(a - b) / (2 * size) for a, b in zip(at(v, size), at(v, -size), strict=True)]

    return product


@torch.no_grad()
def _preconditioner(grads: Sequence[Tensor]) -> list[Tensor]:
    """P^-1/2 elementwise: with one batch, the root of Adam's second moment is |g|."""
    total = sum(float(g.float().abs().sum()) for g in grads)
    count = sum(g.numel() for g in grads)
    floor = max(FLOOR * total / max(count, 1), 1e-30)
    return [(g.detach().float().abs() + floor).rsqrt() for g in grads]


@torch.no_grad()
def _lanczos(
    product: Product, params: Sequence[Tensor], scale: list[Tensor] | None, iterations: int, seconds: float
) -> tuple[float, int]:
    """The largest |eigenvalue| of the tridiagonal matrix, and the products that it took.

    Without orthogonalising anew: that gives some eigenvalues twice, and leaves the largest where it is.
    """
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.device) for p in params]
    v = [x / _norm(v) for x in v]
    before: list[Tensor] | None = None
    diagonal: list[float] = []
    beside: list[float] = []
    value, began = math.nan, time.monotonic()
    for k in range(1, iterations + 1):
        u = v if scale is None else [x * s for x, s in zip(v, scale, strict=True)]
        h = product(u)
        if scale is not None:
            h = [x * s for x, s in zip(h, scale, strict=True)]
        alpha = float(_sum([(_wide(a) * _wide(b)).sum() for a, b in zip(v, h, strict=True)]))
        if not math.isfinite(alpha):
            return math.nan, k
        diagonal.append(alpha)
        h = [a - alpha * b for a, b in zip(h, v, strict=True)]
        if before is not None:
            h = [a - beside[-1] * b for a, b in zip(h, before, strict=True)]
        beta = float(_norm(h))
        if not math.isfinite(beta):
            return math.nan, k
        value, last = _largest(diagonal, beside)
        if beta * last <= TOLERANCE * value or time.monotonic() - began > seconds:
            break
        before, v = v, [x / beta for x in h]
        beside.append(beta)
    return value, len(diagonal)


def _largest(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """The largest |eigenvalue| of a tridiagonal matrix, and the size of the last entry of its vector."""
    off = torch.tensor(beside, dtype=torch.float64)
    matrix = (
        torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    )
    values, vectors = torch.linalg.eigh(matrix)
    i = int(values.abs().argmax())
    return float(values[i].abs()), float(vectors[-1, i].abs())


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return _sum([_wide(t).square().sum() for t in tensors]).sqrt()


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum of 0-D tensors, which may live on several devices."""
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.device.type == "mps" else t.double()  # which has no float64


def largest_stable_lr(sharp: float, *, momentum: float = 0.0, beta1: float | None = None) -> float:
    """The learning rate at which a quadratic of this sharpness stops converging.

        SGD with momentum m: 2 (1 + m) / lambda         Adam: (2 + 2 beta1) / ((1 - beta1) lambda)

    with lambda the preconditioned sharpness for Adam. A bound for a quadratic, not a forecast: measured against the
    true limit it was off by 0.02 to 10 times, for nets bend. nan for an unknown sharpness, inf for a flat loss.

    Example:
        >>> largest_stable_lr(10.0), round(largest_stable_lr(100.0, beta1=0.9), 2)
        (0.2, 0.38)

    Source: Cohen et al. (2021), arXiv 2103.00065, sec. 2; Cohen et al. (2022), arXiv 2207.14484, eq. 3.
    """
    if math.isnan(sharp):
        return math.nan
    if sharp <= 0:
        return math.inf
    if beta1 is not None:
        return (2 + 2 * beta1) / ((1 - beta1) * sharp)
    return 2 * (1 + momentum) / sharp
