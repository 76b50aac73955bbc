"""Operations that fail at the ends of their domain, and the same operations with finite values and gradients there.

A form is asked before the operation runs. It gives None where nothing is unsafe, and the operation runs as it is, bit
for bit. Else it runs the operation on harmless values in place of the unsafe ones (so that no gradient is 0 times
infinity) and puts something finite there:

    ========================  =================================================================================
    log, log2, log10, log1p   0: the log of the smallest number, gradient 0. If there are negative values: the
                              tangent at 0.01 from there down, whose gradient pushes them back
    sqrt, pow (0 < p < 1)     0 at 0 and below, gradient 0
    rsqrt, pow (p < 0)        what it is at the smallest value with a finite gradient; gradient 0
    exp, exp2, expm1          from the fourth root of the largest number on (float32: exp(22), float16: its square
                              root): its tangent. The only form that departs from finite values
    div, reciprocal           0 where the quotient or its gradient is not finite, gradient 0
    acos, asin, acosh, ...    what it is at the end of the domain, gradient 0
    ========================  =================================================================================

A NaN or an infinity that goes in comes out: it was made elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Any]
Form = Callable[..., Any]
"""``form(call, *args, **kwargs)``: the safe value of ``call(*args, **kwargs)``, or None to have it called as it is."""

TANGENT = 1e-2  # at which the log of a tensor with negative values goes over into its tangent


def _put(
    call: Call, x: Tensor, unsafe: Tensor, harmless: float, instead: Tensor | float, *rest: Any, **kwargs: Any
) -> Tensor | None:
    """``call`` where x is safe, ``instead`` elsewhere; None if x is safe throughout."""
    if not bool(unsafe.any()):  # host sync
        return None
    out = call(torch.where(unsafe, torch.full_like(x, harmless), x), *rest, **kwargs)
    other = instead.to(out.dtype) if isinstance(instead, Tensor) else torch.full_like(out, instead)
    return torch.where(unsafe, other, out)


def _log(base: float, shift: float = 0.0) -> Form:
    """log_base(x + shift)."""
    unit = math.log(base)

    def form(call: Call, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor | None:
        limits = torch.finfo(x.dtype)
        least = limits.eps / 2 if shift else limits.tiny
        lowest = (-shift) if shift else limits.tiny  # 1 / x overflows below the smallest normal number
        unsafe = x <= lowest if shift else x < lowest
        if bool(((x < -shift) & (x > -math.inf)).any()):  # host sync
            unsafe = (x < TANGENT - shift) & (x > -math.inf)
            instead = (math.log(TANGENT) + (x + shift - TANGENT) / TANGENT) / unit
            return _put(call, x, unsafe, 1.0, instead, *rest, **kwargs)
        return _put(call, x, unsafe & (x > -math.inf), 1.0, math.log(least) / unit, *rest, **kwargs)

    return form


def _sqrt(call: Call, x: Tensor) -> Tensor | None:
    return _put(call, x, (x <= 0) & (x > -math.inf), 1.0, 0.0)


def _rsqrt(call: Call, x: Tensor) -> Tensor | None:
    floor = _steep(x, -0.5)
    return _put(call, x, (x < floor) & (x > -math.inf), 1.0, floor**-0.5)


def _steep(x: Tensor, power: float) -> float:
    """The value up to which the derivative of x^power, or of its square root, overflows."""
    return float(torch.finfo(x.dtype).max) ** (1 / (power - 1))


def _pow(call: Call, x: Any, power: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or isinstance(power, (Tensor, complex)):
        return None
    whole = float(power).is_integer()
    if power >= 1 and not whole:
        return _put(call, x, (x < 0) & (x > -math.inf), 1.0, 0.0, power)
    if power >= 0 and whole:
        return None
    floor = _steep(x, power)
    if power > 0:
        instead = x.detach().clamp(min=0).pow(power)
        return _put(call, x, (x <= floor) & (x > -math.inf), 1.0, instead, power)
    if whole:
        sign = torch.where(x < 0, -1.0, 1.0) if power % 2 else torch.ones_like(x)
        return _put(call, x, x.abs() < floor, 1.0, sign * floor**power, power)
    return _put(call, x, (x < floor) & (x > -math.inf), 1.0, floor**power, power)


def knee(dtype: torch.dtype) -> float:
    """The exponent from which on ``exp`` is continued by its tangent: its value can still be squared twice."""
    return math.log(torch.finfo(dtype).max) / (2 if dtype is torch.float16 else 4)


def _exp(base: float, shift: float = 0.0) -> Form:
    """base^x - shift."""
    unit = math.log(base)

    def form(call: Call, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor | None:
        top = knee(x.dtype) / unit
        instead = math.exp(top * unit) * (1 + unit * (x - top)) - shift
        instead = instead.clamp(max=torch.finfo(x.dtype).max)
        return _put(call, x, (x > top) & (x < math.inf), 0.0, instead, *rest, **kwargs)

    return form


def _div(call: Call, top: Any, bottom: Any, **kwargs: Any) -> Tensor | None:
    if kwargs.get("rounding_mode") is not None:
        return None
    if not isinstance(bottom, Tensor):
        if bottom != 0 or not isinstance(top, Tensor):
            return None
        return call(top * 0, 1)  # type: ignore[no-any-return]
    if isinstance(top, Tensor) and top.is_complex() or bottom.is_complex():
        return None
    with torch.no_grad():
        quotient = call(top, bottom, **kwargs)
        number = bottom if bottom.is_floating_point() else bottom.to(quotient.dtype)
        sound = quotient.isfinite() & (number != 0)
        if bottom.requires_grad:  # its gradient is -quotient / bottom, that of the top 1 / bottom
            sound &= (quotient / number).isfinite()
        if isinstance(top, Tensor) and top.requires_grad:
            sound &= number.reciprocal().isfinite()
        known = torch.isfinite(top) if isinstance(top, Tensor) else torch.full((), math.isfinite(top))
        unsafe = ~sound & known.to(number.device) & number.isfinite()
    if not bool(unsafe.any()):  # host sync
        return None
    top = torch.where(unsafe, torch.zeros_like(quotient), top)
    return call(top, torch.where(unsafe, torch.ones_like(quotient), bottom), **kwargs)  # type: ignore[no-any-return]


def _rdiv(call: Call, bottom: Tensor, top: Any) -> Tensor | None:
    return _div(lambda a, b: torch.div(a, b), top, bottom)


def _reciprocal(call: Call, x: Tensor) -> Tensor | None:
    return _div(lambda a, b: torch.div(a, b), 1.0, x)


def _within_one(call: Call, x: Tensor) -> Tensor | None:
    """acos and asin: values, but no gradients, at 1 and -1."""
    unsafe = (x.abs() >= 1) & x.isfinite()
    return _put(call, x, unsafe, 0.0, call(x.detach().clamp(-1, 1)))


def _inside_one(call: Call, x: Tensor) -> Tensor | None:
    """atanh and erfinv: neither at 1 and -1."""
    end = 1 - torch.finfo(x.dtype).eps
    return _put(call, x, (x.abs() >= 1) & x.isfinite(), 0.0, call(x.detach().clamp(-end, end)))


def _acosh(call: Call, x: Tensor) -> Tensor | None:
    return _put(call, x, (x <= 1) & (x > -math.inf), 2.0, 0.0)


def _logit(call: Call, x: Tensor, eps: float | None = None) -> Tensor | None:
    if eps is not None:
        return None
    limits = torch.finfo(x.dtype)
    unsafe = ((x < limits.tiny) | (x >= 1)) & x.isfinite()
    return _put(call, x, unsafe, 0.5, call(x.detach().clamp(limits.tiny, 1 - limits.eps)))


def _hypot(call: Call, x: Tensor, y: Tensor) -> Tensor | None:
    dead = (x == 0) & (y == 0)
    if not bool(dead.any()):  # host sync
        return None
    one = torch.ones_like(dead, dtype=x.dtype)
    return torch.where(
        dead, torch.zeros_like(one), call(torch.where(dead, one, x), torch.where(dead, one, y))
    )


def _xlogy(call: Call, x: Any, y: Any) -> Tensor | None:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        return None
    tiny = torch.finfo(y.dtype).tiny
    unsafe = (y < tiny) & (y > -math.inf)
    return _put(lambda safe: call(x, safe), y, unsafe, 1.0, x * math.log(tiny))


FORMS: dict[str, Form] = {
    "log": _log(math.e),
    "log2": _log(2.0),
    "log10": _log(10.0),
    "log1p": _log(math.e, shift=1.0),
    "special_log1p": _log(math.e, shift=1.0),
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "pow": _pow,
    "__pow__": _pow,
    "exp": _exp(math.e),
    "exp2": _exp(2.0),
    "special_exp2": _exp(2.0),
    "expm1": _exp(math.e, shift=1.0),
    "special_expm1": _exp(math.e, shift=1.0),
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "__truediv__": _div,
    "__rdiv__": _rdiv,
    "__rtruediv__": _rdiv,
    "reciprocal": _reciprocal,
    "acos": _within_one,
    "arccos": _within_one,
    "asin": _within_one,
    "arcsin": _within_one,
    "atanh": _inside_one,
    "arctanh": _inside_one,
    "erfinv": _inside_one,
    "special_erfinv": _inside_one,
    "acosh": _acosh,
    "arccosh": _acosh,
    "logit": _logit,
    "special_logit": _logit,
    "hypot": _hypot,
    "xlogy": _xlogy,
    "special_xlogy": _xlogy,
}
