"""How deep a plain net can be before an activation explodes or vanishes, and the table of gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from steadygrad.init.critical import Critical, check_sigmas, critical_point, repulsion
from steadygrad.init.gain import Activation, backward_gain, forward_gain, init_gain, moments

Fate = Literal["explodes", "vanishes", "holds"]

TABLE_ROWS = (
    "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish",
    "squared_relu", "softplus", "hardtanh", "swiglu", "geglu", "maxmin",
)  # fmt: skip


class DepthLimit(NamedTuple):
    """The first depth, in layers, at which a signal leaves the range of a dtype."""

    depth: int  # max_depth if it holds
    fate: Fate

    def __str__(self) -> str:
        return "holds" if self.fate == "holds" else f"{self.fate} at {self.depth}"


class DepthLimits(NamedTuple):
    """Forward: rms of the pre-activations. Backward: norm of the gradient, from 1 at the output."""

    forward: DepthLimit
    backward: DepthLimit


class _Walk(NamedTuple):
    """Logarithms of the variance and of the squared gradient norm by depth, and their steps beyond the end."""

    variance: list[float]
    gradient: list[float]
    variance_step: float
    gradient_step: float


def depth_limits(
    activation: Activation,
    sigma_w: float,
    sigma_b: float = 0.0,
    dtype: torch.dtype = torch.float32,
    *,
    q: float = 1.0,
    max_depth: int = 1000,
) -> DepthLimits:
    """The depth at which signal and gradient of a wide plain net overflow or fall below the normal range of a dtype.

        q_l = sigma_w^2 E[f(z)^2] + sigma_b^2,  z ~ N(0, q_(l-1));      |g_l|^2 = prod chi(q_k), k < l

    The variance map is followed layer by layer from ``q``. Explodes: rms above ``finfo.max``. Vanishes: below
    ``finfo.tiny``, where digits are lost. A net of width n strays from this by about sqrt(depth / n) in the
    logarithm.

    Args:
        activation: name, module or elementwise function.
        sigma_w: gain of the weights, ``std = sigma_w / sqrt(fan_in)``, > 0.
        sigma_b: standard deviation of the biases, >= 0.
        dtype: floating dtype of the activations, e.g. torch.float16.
        q: variance of the first pre-activations, > 0.
        max_depth: layers to follow, >= 1.

    Example:
        >>> depth_limits("relu", sigma_w=2.0).forward
        DepthLimit(depth=256, fate='explodes')
        >>> depth_limits("tanh", sigma_w=1.0, dtype=torch.float16).backward.fate
        'holds'

    Source: Schoenholz et al. (2017), sections 3 and 4, https://arxiv.org/abs/1611.01232
    """
    walk = _walk(activation, sigma_w, sigma_b, q, max_depth)
    return _limits(walk, dtype, max_depth)


def plain_drift(activation: Activation, sigma_w: float, depth: int) -> tuple[float, float]:
    """Over a plain net of some depth with biases at 0, from variance 1: the logarithm by which a small difference in
    variance grows (negative where 1 attracts, as for SELU; 0 if 1 is not kept), and that of the gradient's
    growth.

    Source: linearised variance map; Roberts, Yaida & Hanin (2022), section 5.1,
    https://arxiv.org/abs/2106.10165
    """
    walk = _walk(activation, sigma_w, 0.0, 1.0, depth)
    rest = depth - len(walk.gradient)
    gradient = (walk.gradient[-1] + rest * walk.gradient_step) / 2
    slope = repulsion(activation, 1.0) * sigma_w**2 * moments(activation, 1.0).slope
    stays = abs(walk.variance[-1]) < 1e-6  # at variance 1, the point whose slope this is
    return (depth * math.log(slope) if stays and slope > 0 else 0.0), gradient


def _limits(walk: _Walk, dtype: torch.dtype, max_depth: int) -> DepthLimits:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating dtype such as torch.float32, got {dtype}")
    info = torch.finfo(dtype)
    low, high = 2 * math.log(info.tiny), 2 * math.log(info.max)
    return DepthLimits(
        _first_outside(walk.variance, walk.variance_step, low, high, max_depth),
        _first_outside(walk.gradient, walk.gradient_step, low, high, max_depth),
    )


def _walk(activation: Activation, sigma_w: float, sigma_b: float, q: float, max_depth: int) -> _Walk:
    check_sigmas(sigma_w, sigma_b)
    if max_depth < 1:
        raise ValueError(f"max_depth must be at least 1, got {max_depth}")
    variance: list[float] = []
    gradient = [0.0]  # of the loss with respect to the last pre-activations
    steps = (math.nan, math.nan)
    for _ in range(max_depth):
        m = moments(activation, q)
        following = sigma_w**2 * m.second + sigma_b**2
        variance.append(_log(following))
        gradient.append(gradient[-1] + _log(sigma_w**2 * m.slope))
        before, steps = steps, (_log(following) - math.log(q), gradient[-1] - gradient[-2])
        if all(math.isclose(a, b, rel_tol=1e-11, abs_tol=1e-13) for a, b in zip(before, steps, strict=True)):
            break  # from here on every layer multiplies by the same two factors
        if not 1e-120 < following < 1e120:
            break  # beyond every dtype; the quadrature squares f, so stay clear of float64's own ends
        q = following
    return _Walk(variance, gradient[1:], *steps)


def _first_outside(values: list[float], step: float, low: float, high: float, max_depth: int) -> DepthLimit:
    for depth, value in enumerate(values, 1):
        if value > high:
            return DepthLimit(depth, "explodes")
        if value < low:
            return DepthLimit(depth, "vanishes")
    if abs(step) > 1e-12:
        more = ((high if step > 0 else low) - values[-1]) / step
        depth = len(values) + math.floor(more) + 1
        if depth <= max_depth:
            return DepthLimit(depth, "explodes" if step > 0 else "vanishes")
    return DepthLimit(max_depth, "holds")


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class GainRow:
    """One activation of the table of gains."""

    activation: str
    forward: float  # sigma_w that keeps the variance at q = 1
    backward: float  # sigma_w that keeps the gradient at q = 1
    slope_q: float  # of the variance map at q = 1 with the forward gain: above 1, the signal drifts off
    init: float  # what initialise gives
    torch_gain: float  # torch.nn.init.calculate_gain, nan where torch has none
    critical: Critical | None  # None: there is no critical point
    limits: dict[str, DepthLimits]  # by dtype, at the table's sigma_w and sigma_b


@dataclass(frozen=True, slots=True)
class GainTable:
    """Gains of many activations, and how deep each may be; ``str()`` aligns it."""

    rows: tuple[GainRow, ...]
    sigma_w: float | None
    sigma_b: float
    max_depth: int

    def __str__(self) -> str:
        dtypes = list(self.rows[0].limits) if self.rows else []
        head = [
            "activation",
            "forward",
            "backward",
            "slope q",
            "init",
            "torch",
            "critical w",
            "critical b",
            "q*",
        ]
        head += [f"{way} {d}" for d in dtypes for way in ("forward", "backward")]
        body = []
        for r in self.rows:
            c = r.critical
            cells = [r.activation] + [
                _cell(v) for v in (r.forward, r.backward, r.slope_q, r.init, r.torch_gain)
            ]
            cells += [_cell(v) for v in (c.sigma_w, c.sigma_b, c.q)] if c else ["none", "", ""]
            for d in dtypes:
                cells += [str(r.limits[d].forward), str(r.limits[d].backward)]
            body.append(cells)
        width = "its own init gain" if self.sigma_w is None else f"{self.sigma_w:g}"
        caption = f"depth limits of plain nets up to {self.max_depth} layers, sigma_w {width}, sigma_b {self.sigma_b:g}"
        return "\n".join([*aligned([head, *body]), caption])


def gain_table(
    activations: Sequence[str] = TABLE_ROWS,
    sigma_w: float | None = None,
    sigma_b: float = 0.0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16),
    *,
    max_depth: int = 1000,
) -> GainTable:
    """The gains of activations, their critical points, and the depth at which each explodes or vanishes.

    Args:
        activations: names in ``gain.ACTIVATIONS``, or of the units "swiglu", "geglu", "glu", "maxmin"
            (GroupSort too), "crelu" and "maxout" (of two).
        sigma_w: gain of the weights for the depth limits; None takes each activation's ``init_gain``.
        sigma_b: standard deviation of the biases, >= 0.
        dtypes: floating dtypes to judge the depth by.
        max_depth: layers to follow, >= 1.

    A layer of gated units is ``W (f(a) * b)`` with both projections drawn at ``sigma_w``. SwiGLU and GEGLU are
    near to products of two signals, so their variance map repels (slope q about 2): whatever the gain, a plain
    net of them runs off doubly exponentially, and they need a norm before them. MaxMin and GroupSort permute:
    at gain 1 a net of any depth holds. Costs about a second for the whole default table.

    Example:
        >>> row = gain_table(["relu"], sigma_w=1.1, dtypes=[torch.float16]).rows[0]
        >>> round(row.forward, 3), str(row.limits["float16"].backward)
        (1.414, 'vanishes at 39')

    Source: the formulas of ``gain.moments``, ``gain.critical_point`` and ``depth_limits``.
    """
    rows = []
    for name in activations:
        try:
            critical = critical_point(name)
        except ValueError:
            critical = None
        walk = _walk(name, init_gain(name) if sigma_w is None else sigma_w, sigma_b, 1.0, max_depth)
        limits = {str(d).removeprefix("torch."): _limits(walk, d, max_depth) for d in dtypes}
        forward, backward = forward_gain(name), backward_gain(name)
        slope_q = repulsion(name, 1.0) * (forward / backward) ** 2
        rows.append(
            GainRow(name, forward, backward, slope_q, init_gain(name), _torch_gain(name), critical, limits)
        )
    return GainTable(tuple(rows), sigma_w, sigma_b, max_depth)


def _torch_gain(name: str) -> float:
    known = {
        "identity": "linear",
        "tanh": "tanh",
        "sigmoid": "sigmoid",
        "relu": "relu",
        "leaky_relu": "leaky_relu",
        "selu": "selu",
    }
    return float(torch.nn.init.calculate_gain(known[name])) if name in known else math.nan  # type: ignore[arg-type]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the rest to the right, a rule under the head."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]
