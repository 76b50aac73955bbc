"""How deep a plain net can be before an activation explodes or vanishes, and the table of gains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from steadygrad.init._spread import Band, band
from steadygrad.init.critical import Critical, check_sigmas, critical_point, repulsion
from steadygrad.init.gain import Activation, backward_gain, forward_gain, init_gain, moments

Fate = Literal["explodes", "vanishes", "unstable", "holds"]

TABLE_ROWS = (
    "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish",
    "squared_relu", "softplus", "hardtanh", "swiglu", "geglu", "maxmin",
)  # fmt: skip


FACTOR = 10.0  # of the table's first column of depths
DIRECTIONS = {"explodes": "up", "vanishes": "down", "unstable": "either"}


class DepthLimit(NamedTuple):
    """The first depth, in layers, at which a signal leaves the range; "unstable": up or down, as chance has it."""

    depth: int  # max_depth if it holds
    fate: Fate

    def __str__(self) -> str:
        if self.fate == "holds":
            return "holds"
        return f"{self.fate} {'from' if self.fate == 'unstable' else 'at'} {self.depth}"


class DepthLimits(NamedTuple):
    """Forward: rms of the pre-activations. Backward: norm of the gradient, from 1 at the output."""

    forward: DepthLimit
    backward: DepthLimit


class _Walk(NamedTuple):
    """Logarithms of the variance and of the squared gradient norm by depth, of an infinitely wide net."""

    start: float  # of the variance
    variance: list[float]
    gradient: list[float]


def depth_limits(
    activation: Activation,
    sigma_w: float,
    sigma_b: float = 0.0,
    dtype: torch.dtype = torch.float32,
    *,
    q: float | None = None,
    width: int | None = 256,
    factor: float | None = None,
    max_depth: int = 1000,
) -> DepthLimits:
    """The depth at which signal and gradient of a plain net overflow or fall below the normal range of a dtype.

        q_l = sigma_w^2 E[f(z)^2] + sigma_b^2,  z ~ N(0, q_(l-1));      |g_l|^2 = prod chi(q_k), k < l

    The variance map is followed layer by layer from ``q``. Explodes: rms above ``finfo.max``. Vanishes: below
    ``finfo.tiny``, where digits are lost. Depth counts the layers behind the first.

    That walk is an infinitely wide net's. One of width n strays from it, in the logarithm, by about 1/sqrt(n) in
    each layer, and the slope of the variance map multiplies what earlier layers strayed by: with slope 1 (ReLU)
    sqrt(depth / n), with less a bounded amount, with more (a fixed point that repels: GELU, SiLU, squared ReLU,
    gated units) it grows like slope^depth. "unstable": two standard deviations of that lead out of the range
    where the walk does not, or out of its other end.

    Args:
        activation: name, module or elementwise function.
        sigma_w: gain of the weights, ``std = sigma_w / sqrt(fan_in)``, > 0.
        sigma_b: standard deviation of the biases, >= 0.
        dtype: floating dtype of the activations, e.g. torch.float16.
        q: variance of the first pre-activations, > 0; None: ``sigma_w^2 + sigma_b^2``, which inputs of
            variance 1 give.
        width: numbers in a layer, >= 1; None: infinitely many.
        factor: > 1; then the range is not the dtype's, but this many times above and below the start.
        max_depth: layers to follow, >= 1.

    Example:
        >>> depth_limits("relu", sigma_w=2.0).forward
        DepthLimit(depth=254, fate='explodes')
        >>> depth_limits("tanh", sigma_w=1.0, dtype=torch.float16).backward.fate
        'holds'
        >>> str(depth_limits("silu", 1.6765, q=1.0, factor=10.0).forward)  # on the fixed point, which repels
        'unstable from 18'

    Source: Schoenholz et al. (2017), sections 3 and 4, https://arxiv.org/abs/1611.01232; the width:
    ``init._spread.band``.
    """
    walk = _walk(activation, sigma_w, sigma_b, _first_q(sigma_w, sigma_b, q), max_depth)
    return _limits(walk, _band(activation, sigma_w, sigma_b, walk, width), _range(walk, dtype, factor))


def plain_drift(activation: Activation, sigma_w: float, depth: int) -> tuple[float, float]:
    """Over a plain net of some depth with biases at 0, from variance 1: the logarithm by which a small difference in
    variance grows (negative where 1 attracts, as for SELU; 0 if 1 is not kept), and that of the gradient's
    growth.

    Source: linearised variance map; Roberts, Yaida & Hanin (2022), section 5.1,
    https://arxiv.org/abs/2106.10165
    """
    walk = _walk(activation, sigma_w, 0.0, 1.0, depth)
    slope = repulsion(activation, 1.0) * sigma_w**2 * moments(activation, 1.0).slope
    stays = abs(walk.variance[-1]) < 1e-6  # at variance 1, the point whose slope this is
    return (depth * math.log(slope) if stays and slope > 0 else 0.0), walk.gradient[-1] / 2


def _first_q(sigma_w: float, sigma_b: float, q: float | None) -> float:
    check_sigmas(sigma_w, sigma_b)
    return sigma_w**2 + sigma_b**2 if q is None else q


class _Range(NamedTuple):
    """Logarithms between which variance and squared gradient norm stay."""

    variance: tuple[float, float]
    gradient: tuple[float, float]


def _range(walk: _Walk, dtype: torch.dtype, factor: float | None) -> _Range:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating dtype such as torch.float32, got {dtype}")
    if factor is None:
        info = torch.finfo(dtype)
        ends = 2 * math.log(info.tiny), 2 * math.log(info.max)
        return _Range(ends, ends)
    if not 1 < factor < math.inf:
        raise ValueError(f"factor must be above 1 and finite, got {factor}")
    far = 2 * math.log(factor)
    return _Range((walk.start - far, walk.start + far), (-far, far))


def _band(activation: Activation, sigma_w: float, sigma_b: float, walk: _Walk, width: int | None) -> Band:
    if width is None:
        return Band(walk.variance, walk.variance, walk.gradient, walk.gradient)
    if width < 1:
        raise ValueError(f"width must be at least 1, or None for infinite, got {width}")
    return band(activation, sigma_w, sigma_b, walk.start, walk.variance, walk.gradient, width)


def _limits(walk: _Walk, around: Band, within: _Range) -> DepthLimits:
    return DepthLimits(
        _limit(walk.variance, around.variance_low, around.variance_high, *within.variance),
        _limit(walk.gradient, around.gradient_low, around.gradient_high, *within.gradient),
    )


def _limit(middle: list[float], bottom: list[float], top: list[float], low: float, high: float) -> DepthLimit:
    """What becomes of a walk and the band around it."""
    up, down = _first(v > high for v in top), _first(v < low for v in bottom)
    explodes, vanishes = _first(v > high for v in middle), _first(v < low for v in middle)
    if explodes is not None and (vanishes is None or explodes < vanishes) and down is None:
        return DepthLimit(explodes, "explodes")
    if vanishes is not None and (explodes is None or vanishes < explodes) and up is None:
        return DepthLimit(vanishes, "vanishes")
    left = [d for d in (up, down) if d is not None]
    return DepthLimit(min(left), "unstable") if left else DepthLimit(len(middle), "holds")


def _first(outside: Iterable[bool]) -> int | None:
    return next((depth for depth, out in enumerate(outside, 1) if out), None)


def _walk(activation: Activation, sigma_w: float, sigma_b: float, q: float, max_depth: int) -> _Walk:
    check_sigmas(sigma_w, sigma_b)
    if max_depth < 1:
        raise ValueError(f"max_depth must be at least 1, got {max_depth}")
    if not 0 < q < math.inf:
        raise ValueError(f"q must be a positive finite variance, got {q}")
    start = math.log(q)
    variance: list[float] = []
    gradient = [0.0]  # of the loss with respect to the last pre-activations
    steps = (math.nan, math.nan)
    for _ in range(max_depth):
        m = moments(activation, q)
        following = sigma_w**2 * m.second + sigma_b**2
        variance.append(_log(following))
        gradient.append(gradient[-1] + _log(sigma_w**2 * m.slope))
        before, steps = steps, (_log(following) - math.log(q), gradient[-1] - gradient[-2])
        if all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-13) for a, b in zip(before, steps, strict=True)):
            break  # from here on every layer multiplies by the same two factors
        if not 1e-120 < following < 1e120:
            break  # beyond every dtype; the quadrature squares f, so stay clear of float64's own ends
        q = following
    ahead = range(1, max_depth - len(variance) + 1)
    variance += [variance[-1] + k * steps[0] for k in ahead]
    gradient += [gradient[-1] + k * steps[1] for k in ahead]
    return _Walk(start, variance, gradient[1:])


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
    limits: dict[str, DepthLimits]  # "10 times" and by dtype, at the table's sigma_w and sigma_b


@dataclass(frozen=True, slots=True)
class GainTable:
    """Gains of many activations, and how deep each may be; ``str()`` aligns it."""

    rows: tuple[GainRow, ...]
    sigma_w: float | None
    sigma_b: float
    width: int | None
    max_depth: int

    def __str__(self) -> str:
        ranges = list(self.rows[0].limits) if self.rows else []
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
        head += ranges
        body = []
        for r in self.rows:
            c = r.critical
            cells = [r.activation] + [
                _cell(v) for v in (r.forward, r.backward, r.slope_q, r.init, r.torch_gain)
            ]
            cells += [_cell(v) for v in (c.sigma_w, c.sigma_b, c.q)] if c else ["none", "", ""]
            cells += [_earlier(r.limits[name]) for name in ranges]
            body.append(cells)
        gain = "its own init gain" if self.sigma_w is None else f"{self.sigma_w:g}"
        width = self.width or "infinite"
        caption = [
            f"last columns: layers until signal or gradient is {FACTOR:g} times up or down, or leaves a dtype's range;",
            "either: up or down, as chance has it. Plain nets with inputs of variance 1,",
            f"sigma_w {gain}, sigma_b {self.sigma_b:g}, width {width}, up to {self.max_depth} layers",
        ]
        return "\n".join([*aligned([head, *body]), *caption])


def _earlier(limits: DepthLimits) -> str:
    """The one of signal and gradient that leaves the range first."""
    way, limit = min(
        zip(("signal", "gradient"), limits, strict=True), key=lambda x: (x[1].fate == "holds", x[1].depth)
    )
    if limit.fate == "holds":
        return "holds"
    return f"{way} {DIRECTIONS[limit.fate]} {limit.depth}"


def gain_table(
    activations: Sequence[str] = TABLE_ROWS,
    sigma_w: float | None = None,
    sigma_b: float = 0.0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16),
    *,
    width: int | None = 256,
    max_depth: int = 1000,
) -> GainTable:
    """The gains of activations, their critical points, and the depth at which each explodes or vanishes.

    Args:
        activations: names in ``gain.ACTIVATIONS``, or of the units "swiglu", "geglu", "glu", "maxmin"
            (GroupSort too), "crelu" and "maxout" (of two).
        sigma_w: gain of the weights for the depth limits; None takes each activation's ``init_gain``.
        sigma_b: standard deviation of the biases, >= 0.
        dtypes: floating dtypes to judge the depth by; the column "10 times" stands before them.
        width: numbers in a layer, >= 1; None: infinitely many.
        max_depth: layers to follow, >= 1.

    The depths are ``depth_limits`` of a net whose inputs have variance 1: the earlier of signal and gradient is
    shown, both are in the rows. GELU, SiLU and Mish grow from such inputs on, as their fixed point repels
    (slope q above 1). A layer of gated units is ``W (f(a) * b)`` with both projections drawn at ``sigma_w``.
    SwiGLU and GEGLU are near to products of two signals (slope q about 2), as squared ReLU is: whatever the
    gain, a plain net of them runs off doubly exponentially, up or down, and they need a norm before them.
    MaxMin and GroupSort permute: at gain 1 a net of any depth holds. Costs some seconds for the whole default
    table.

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
        init = init_gain(name)
        gain = init if sigma_w is None else sigma_w
        walk = _walk(name, gain, sigma_b, _first_q(gain, sigma_b, None), max_depth)
        around = _band(name, gain, sigma_b, walk, width)
        ranges = {f"{FACTOR:g} times": _range(walk, torch.float32, FACTOR)}
        ranges |= {str(d).removeprefix("torch."): _range(walk, d, None) for d in dtypes}
        limits = {label: _limits(walk, around, within) for label, within in ranges.items()}
        forward, backward = forward_gain(name), backward_gain(name)
        slope_q = repulsion(name, 1.0) * (forward / backward) ** 2
        rows.append(GainRow(name, forward, backward, slope_q, init, _torch_gain(name), critical, limits))
    return GainTable(tuple(rows), sigma_w, sigma_b, width, max_depth)


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
