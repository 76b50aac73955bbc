"""Why an operation gave a NaN or an infinity although what went in was finite, in a sentence with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steadygrad.locating.values import bad_count, first_value, peak, plain, rows_hit

Test = Callable[[Tensor], Tensor]

# operation -> what its first argument may not be
DOMAINS: dict[str, tuple[tuple[str, Test], ...]] = {
    "log": (("log of 0", lambda x: x == 0), ("log of a negative value", lambda x: x < 0)),
    "log2": (("log2 of 0", lambda x: x == 0), ("log2 of a negative value", lambda x: x < 0)),
    "log10": (("log10 of 0", lambda x: x == 0), ("log10 of a negative value", lambda x: x < 0)),
    "log1p": (("log1p of -1", lambda x: x == -1), ("log1p of a value below -1", lambda x: x < -1)),
    "sqrt": (("sqrt of a negative value", lambda x: x < 0),),
    "rsqrt": (("rsqrt of 0", lambda x: x == 0), ("rsqrt of a negative value", lambda x: x < 0)),
    "reciprocal": (("division by 0", lambda x: x == 0),),
    "acos": (("acos of a value beyond 1", lambda x: x.abs() > 1),),
    "asin": (("asin of a value beyond 1", lambda x: x.abs() > 1),),
    "acosh": (("acosh of a value below 1", lambda x: x < 1),),
    "atanh": (
        ("atanh of 1 or -1", lambda x: x.abs() == 1),
        ("atanh of a value beyond 1", lambda x: x.abs() > 1),
    ),
    "logit": (
        ("logit of 0 or 1", lambda x: (x == 0) | (x == 1)),
        ("logit of a value outside of 0 to 1", lambda x: (x < 0) | (x > 1)),
    ),
    "erfinv": (("erfinv of a value at or beyond 1", lambda x: x.abs() >= 1),),
    "lgamma": (("lgamma of a whole number at or below 0", lambda x: (x <= 0) & (x == x.floor())),),
    "digamma": (("digamma of 0", lambda x: x == 0),),
}
GROWING = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
SOFTMAXES = frozenset({"softmax", "log_softmax", "logsumexp"})


def explain(op: str, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> str:
    """A sentence on what went wrong in one operation.

    Args:
        op: its plain name.
        inputs: its arguments as they were before it, in their order.
        outputs: what it made; at least one value is not finite.

    Example:
        >>> x = torch.tensor([0.0, 1.0])
        >>> explain("log", [x], [x.log()])
        'log of 0 in 1 of 2 values'
    """
    tensors = [
        plain(x) for x in inputs if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    ]
    known = _special(op, inputs, tensors, outputs)
    return known or _overflow(op, tensors, outputs)


def domain_fault(op: str, x: Tensor) -> str:
    """A sentence if the argument lies outside of the domain of an elementwise operation, "" otherwise."""
    x = plain(x)
    for name, test in () if x.is_complex() else DOMAINS.get(op, ()):
        if count := int(test(x).sum()):
            return f"{name} in {_of(count, x)}"
    return ""


def division_fault(top: Any, bottom: Tensor) -> str:
    """A sentence if a divisor is 0, "" otherwise. ``top`` may be a number or unknown (None)."""
    zero = plain(bottom) == 0
    if not bool(zero.any()):
        return ""
    if isinstance(top, Tensor) and top.shape == bottom.shape and bool((plain(top)[zero] == 0).all()):
        return f"0 / 0 in {_of(int(zero.sum()), bottom)}"
    if isinstance(top, Tensor) and bottom.numel() == 1 and bool((top == 0).all()):
        return "0 / 0"
    return f"division by 0 in {_of(int(zero.sum()), bottom)}"


def _special(op: str, inputs: Sequence[Any], tensors: list[Tensor], outputs: Sequence[Tensor]) -> str:
    if not tensors:
        return _softmax_unseen(op, outputs[0]) if op in SOFTMAXES else ""
    x = tensors[0]
    if sentence := domain_fault(op, x):
        return sentence
    if op in ("div", "true_divide", "addcdiv") and len(tensors) >= 2:
        return division_fault(tensors[-2], tensors[-1])
    if op == "pow":
        return _power(inputs)
    if op in GROWING and not x.is_complex():
        top = float(x.abs().max()) if op in ("sinh", "cosh") else float(x.max())
        return f"{op} of {top:.4g} overflows {_dtype(outputs[0])} in {_of(bad_count(outputs[0]), outputs[0])}"
    if op in SOFTMAXES:
        return _softmax(op, x, outputs[0])
    if op in ("std", "var", "std_mean", "var_mean"):
        return f"{op.partition('_')[0]} of one value: it divides by the number of values less 1"
    if op == "mean" and x.numel() == 0:
        return "mean of no values: 0 / 0"
    if op.startswith("nll_loss"):
        return "every label is ignored or has weight 0: 0 / 0"
    return ""


def _power(inputs: Sequence[Any]) -> str:
    base, exponent = inputs[0], inputs[1]
    if not isinstance(base, Tensor) or not base.is_floating_point():
        return ""
    e = exponent.expand_as(base) if isinstance(exponent, Tensor) and exponent.dim() == 0 else exponent
    if isinstance(e, Tensor) and e.shape != base.shape:
        return ""
    whole = e == e.floor() if isinstance(e, Tensor) else float(e).is_integer()
    below = e < 0
    if not isinstance(below, Tensor) and below and (count := int((base == 0).sum())):
        return f"0 to the power of {exponent:g} in {_of(count, base)}"
    if not isinstance(whole, Tensor) and not whole and (count := int((base < 0).sum())):
        return f"a negative value to the power of {exponent:g} in {_of(count, base)}"
    if isinstance(whole, Tensor) and (count := int(((base < 0) & ~whole).sum())):
        return f"a negative value to a fractional power in {_of(count, base)}"
    return ""


def _softmax(op: str, x: Tensor, out: Tensor) -> str:
    if x.is_complex() or x.dim() == 0 or not bool(torch.isinf(x).any()):
        return ""
    bad = torch.isnan(plain(out))
    where = f"{int(bad.sum())} of {bad.numel()} values" if bool(bad.any()) else "a row"
    if bool((x == math.inf).any()):
        return f"{op} of a row with inf: {where} are nan"
    return f"{op} of a row that is -inf throughout, everything is masked: {where} are nan"


def _softmax_unseen(op: str, out: Tensor) -> str:
    where = _of(bad_count(out), out)
    return f"{op} gives {first_value(out)} in {where}: a row is masked throughout, or a score is not finite"


def _overflow(op: str, tensors: list[Tensor], outputs: Sequence[Tensor]) -> str:
    out = max(outputs, key=bad_count)
    value, where = first_value(out), _of(bad_count(out), out)
    tops = [top for top in map(peak, tensors[:3]) if math.isfinite(top)]
    sizes = [f"{top:.3g}" for top in tops]
    limit = torch.finfo(out.dtype).max
    reach = math.prod(max(top, 1.0) for top in tops)
    # inf - inf inside of one product is NaN as well
    if sizes and reach > (limit if value == "nan" else math.sqrt(limit)):
        return f"{op} of values up to {' and '.join(sizes)} overflows {_dtype(out)} (largest {limit:.3g}) in {where}"
    inputs = f" from values up to {' and '.join(sizes)}" if sizes else ""
    return f"{op} gives {value} in {where}{inputs}"


def samples_in_words(hit: Tensor) -> str:
    """How many samples are hit, to follow a sentence: ``", in 1 of 16 samples"``; "" for a value without axes."""
    rows, length = rows_hit(hit)
    return f", in {len(rows)} of {length} samples" if length else ""


def _of(count: int, tensor: Tensor) -> str:
    return f"{count} of {tensor.numel()} values"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
