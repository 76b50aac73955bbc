"""Points where an operation has a value but no finite derivative, read from what autograd kept of it.

Norms are not among them: torch takes 0 for their gradient at 0. Their second derivative is a division by 0, which a
graph of second order shows as an operation of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from steadygrad.graph.walk import Node, op, saved
from steadygrad.locating.ops import node_name
from steadygrad.locating.values import plain

Test = Callable[[Tensor], Tensor]

# operation -> saved value, where the derivative is not finite, in words
POINTS: dict[str, tuple[str, Test, str]] = {
    "Sqrt": ("result", lambda y: y == 0, "at 0"),
    "Rsqrt": ("result", torch.isinf, "at 0"),
    "Reciprocal": ("result", torch.isinf, "at 0"),
    "Log": ("self", lambda x: x == 0, "at 0"),
    "Log2": ("self", lambda x: x == 0, "at 0"),
    "Log10": ("self", lambda x: x == 0, "at 0"),
    "Log1P": ("self", lambda x: x == -1, "at -1"),
    "Acos": ("self", lambda x: x.abs() >= 1, "at 1 and -1"),
    "Asin": ("self", lambda x: x.abs() >= 1, "at 1 and -1"),
    "Acosh": ("self", lambda x: x <= 1, "at 1"),
    "Atanh": ("self", lambda x: x.abs() >= 1, "at 1 and -1"),
    "Logit": ("self", lambda x: (x <= 0) | (x >= 1), "at 0 and 1"),
    "Erfinv": ("self", lambda x: x.abs() >= 1, "at 1 and -1"),
    "Div": ("other", lambda x: x == 0, "for a divisor of 0"),
    "Xlogy": ("other", lambda x: x == 0, "at 0"),
    "SpecialEntr": ("self", lambda x: x == 0, "at 0"),
    "Hypot": ("result", lambda y: y == 0, "where both sides are 0"),
    "Exp": ("result", torch.isinf, "where it has overflowed"),
    "Softmax": ("result", torch.isnan, "in a row that is masked throughout"),
    "LogSoftmax": ("result", torch.isnan, "in a row that is masked throughout"),
}


def singular(node: Node) -> tuple[str, int, Tensor] | None:
    """Where the derivative of a node is not finite, from the values it kept for it.

    Returns:
        A sentence, the number of such values, and where they are (booleans of the shape of the operation);
        None if there are none, or if it cannot be told.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> singular(x.sqrt().grad_fn)[:2]
        ('the derivative of sqrt is not finite at 0: 1 of 2 values', 1)
    """
    name = op(node)
    if name == "Pow":
        return _power(node)
    if name in ("LinalgEigh", "LinalgSvd"):
        return _repeated(node, name)
    if name not in POINTS:
        return None
    which, test, where = POINTS[name]
    value = saved(node, which)
    if not isinstance(value, Tensor) or value.is_complex():
        return None
    return _told(name, test(plain(value)), where)


def _power(node: Node) -> tuple[str, int, Tensor] | None:
    base, exponent = saved(node, "self"), saved(node, "exponent")
    if not isinstance(base, Tensor) or base.is_complex() or isinstance(exponent, complex):
        return None
    if isinstance(exponent, Tensor):
        try:
            base, exponent = torch.broadcast_tensors(plain(base), plain(exponent))
        except RuntimeError:
            return None
        return _told("Pow", (base == 0) & (exponent < 1) & (exponent != 0), "at 0 for powers below 1")
    if not isinstance(exponent, (int, float)) or exponent >= 1 or exponent == 0:
        return None
    return _told("Pow", plain(base) == 0, f"at 0 for the power {exponent:g}")


def _repeated(node: Node, name: str) -> tuple[str, int, Tensor] | None:
    values = saved(node, "eigenvalues" if name == "LinalgEigh" else "S")
    if not isinstance(values, Tensor) or values.shape[-1] < 2:
        return None
    values = plain(values).sort(dim=-1).values
    return _told(name, values.diff(dim=-1) == 0, "for equal eigenvalues or singular values")


def _told(name: str, where: Tensor | None, words: str) -> tuple[str, int, Tensor] | None:
    count = 0 if where is None else int(where.sum())
    if where is None or not count:
        return None
    sentence = f"the derivative of {node_name(name)} is not finite {words}: {count} of {math.prod(where.shape)} values"
    return sentence, count, where
