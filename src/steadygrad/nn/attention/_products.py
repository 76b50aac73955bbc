"""The product of queries and keys, however it was written: what was multiplied, and how to do it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.nn.attention.logits import soft_cap_logits

PRODUCTS = frozenset("matmul __matmul__ __rmatmul__ bmm baddbmm mm einsum".split())
SCALINGS = frozenset("mul mul_ __mul__ __rmul__ __imul__ multiply multiply_".split())
DIVISIONS = frozenset("div div_ __truediv__ __itruediv__ divide divide_ true_divide true_divide_".split())
NEUTRAL = frozenset(  # the logits stay what they are
    """
    to float half bfloat16 double type type_as contiguous clone view reshape unsqueeze squeeze flatten unflatten
    expand expand_as view_as reshape_as
    """.split()
)
MASKS = frozenset(  # masks, biases, bounds
    """
    add add_ __add__ __radd__ __iadd__ sub sub_ subtract __sub__ __rsub__ __isub__ rsub masked_fill masked_fill_
    where __setitem__ maximum minimum max min clamp clamp_ clamp_min clamp_max clip nan_to_num nan_to_num_ tril triu
    masked_scatter
    """.split()
)
SHIFTS = frozenset("add add_ __add__ __radd__ __iadd__ sub sub_ subtract __sub__ __isub__".split())
FOLLOWED = SCALINGS | DIVISIONS | NEUTRAL | MASKS
OPERANDS = dict.fromkeys("input other mat2".split())  # torch's names, in their order

Scalar = float | Tensor


@dataclass(frozen=True)
class Operand:
    """A query or key as it stands in its product."""

    value: Tensor
    feature: int  # the dimension that the product sums over, negative
    head: int | None = None  # the dimension of the heads, negative; None if there is none
    num_heads: int | None = None  # heads folded into the first dimension, batch * heads
    scale: Scalar = 1.0  # number that the vectors were multiplied by beforehand


@dataclass(frozen=True)
class Step:
    """One call between the product and the softmax; None stands for the logits in its arguments."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str
    factor: Scalar | None  # for a multiplication by a number
    neutral: bool
    scaling: bool = False  # multiplies each row by one number
    shift: bool = False  # adds one number to a whole row, which the softmax does not see

    def __call__(self, logits: Tensor) -> Tensor:
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.place, int):
            args[self.place] = logits
        else:
            kwargs[self.place] = logits
        out = self.func(*args, **kwargs)
        return logits if out is None else out  # __setitem__


@dataclass(frozen=True)
class Product:
    """Query times key, and what happened to the result since."""

    query: Operand
    key: Operand
    multiply: Callable[[Tensor, Tensor], Tensor]
    steps: tuple[Step, ...] = ()
    heads: int | None = None
    lost_in: str = ""  # a call that is not followed
    autocast: torch.dtype | None = None  # in force when the product was made

    def then(self, step: Step, out: Tensor) -> Product:
        return replace(self, steps=(*self.steps, step), heads=heads_of(out) or self.heads)

    @property
    def shifted(self) -> bool:
        return any(step.shift for step in self.steps)

    def logits(
        self, query: Tensor, key: Tensor, cap: float | None = None, without_shifts: bool = False
    ) -> Tensor:
        """What goes into the softmax for other queries and keys, with the cap between the scaling and the masks."""
        with torch.autocast(query.device.type, self.autocast, enabled=self.autocast is not None):
            x = self.multiply(query, key)
        before_masks = next((i for i, s in enumerate(self.steps) if not s.neutral and not s.scaling), None)
        at = len(self.steps) if before_masks is None else before_masks
        for step in self.steps[:at]:
            x = step(x)
        if cap is not None:
            later: Scalar = 1.0  # a scaling after the mask scales the logits too
            for step in self.steps[at:]:
                later = later if step.factor is None else step.factor * later
            x = soft_cap_logits(x * later, cap) / later
        for step in self.steps[at:]:
            if not (without_shifts and step.shift):
                x = step(x)
        return x


def heads_of(logits: Tensor) -> int | None:
    return logits.size(-3) if logits.ndim >= 4 else None


def as_scalar(x: Any) -> Scalar | None:
    if isinstance(x, bool):
        return None
    if isinstance(x, (int, float)):
        return x
    return x if isinstance(x, Tensor) and x.ndim == 0 else None


def by_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The operands of a product or scaling by their place, also where they were given by name."""
    if kwargs.keys() <= OPERANDS.keys():
        return (*args, *(kwargs[name] for name in OPERANDS if name in kwargs)), {}
    return args, kwargs


def factor_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], place: int | str) -> Scalar | None:
    """The number that a call multiplies a tensor by; None if it does something else."""
    if kwargs or len(args) != 2 or not isinstance(place, int):
        return None
    other = as_scalar(args[1 - place])
    if other is None:
        return None
    if name in SCALINGS:
        return other
    return 1 / other if name in DIVISIONS and place == 0 else None


def step_of(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int | str) -> Step:
    """A call as a step, without holding on to the logits that went into it."""
    factor = factor_of(name, args, kwargs, place)
    scaling, shift = factor is not None, False
    if isinstance(place, int):
        by_row = len(args) == 2 and _constant_in_rows(args[1 - place])
        scaling |= by_row and not kwargs and (name in SCALINGS or (name in DIVISIONS and place == 0))
        shift = by_row and name in SHIFTS
        args = (*args[:place], None, *args[place + 1 :])
    else:
        kwargs = {**kwargs, place: None}
    return Step(func, args, kwargs, place, factor, name in NEUTRAL, scaling, shift)


def _constant_in_rows(x: Any) -> bool:
    return as_scalar(x) is not None or (isinstance(x, Tensor) and x.size(-1) == 1)


def writes_elsewhere(name: str, place: int | str) -> bool:
    """A call that changes another tensor than the logits in place cannot be done a second time."""
    in_place = (
        name.endswith("_") and not name.startswith("__") or name.startswith("__i") or name == "__setitem__"
    )
    return in_place and place != 0


def product_of(
    func: Any,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    num_heads: int | None,
    scale_of: Callable[[Tensor], Scalar],
) -> Product | None:
    """The product that a call makes if its operands may be queries and keys; None if not."""
    if name == "einsum":
        return _einsum(func, args, num_heads, scale_of)
    steps: tuple[Step, ...] = ()
    if name == "baddbmm":
        added, *args = args
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        if kwargs.keys() - {"beta", "alpha"} or len(args) != 2:
            return None
        func = torch.bmm
        steps = (
            Step(torch.mul, (None, alpha), {}, 0, alpha, False, scaling=True),
            Step(
                torch.add,
                (None, 0.0 if beta == 0 else added if beta == 1 else added * beta),
                {},
                0,
                None,
                False,
            ),
        )
    elif kwargs or len(args) != 2:
        return None
    query, key = reversed(args) if name == "__rmatmul__" else args
    if not (_may_be_data(query) and _may_be_data(key)) or min(query.ndim, key.ndim) < 2:
        return None
    multiply = torch.matmul if name == "__rmatmul__" else func

    def operand(x: Tensor, feature: int) -> Operand:
        folded = num_heads if x.ndim == 3 else None
        return Operand(x, feature, -3 if x.ndim >= 4 else None, folded, scale_of(x))

    heads = num_heads if query.ndim == 3 else None
    if max(query.ndim, key.ndim) >= 4:
        heads = max(x.size(-3) for x in (query, key) if x.ndim >= 3)
    return Product(operand(query, -1), operand(key, -2), multiply, steps, heads)


def _einsum(
    func: Any, args: Sequence[Any], num_heads: int | None, scale_of: Callable[[Tensor], Scalar]
) -> Product | None:
    if len(args) != 3 or not isinstance(args[0], str):
        return None
    equation, *operands = args
    if not all(_may_be_data(x) for x in operands):
        return None
    inputs, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    first, _, second = inputs.partition(",")
    if not arrow:
        letters = sorted(c for c in set(first + second) if c != "." and (first + second).count(c) == 1)
        output = ("." if "." in inputs else "") + "".join(letters)
    summed = [c for c in first if c in second and c not in output]
    key_at = [i for i, names in enumerate((first, second)) if output[-1:] in names]
    if len(summed) != 1 or len(key_at) != 1 or output[-1:] in ("", "."):
        return None

    letter = output[-3] if len(output) >= 4 and output[-3] != "." else None

    def operand(x: Tensor, names: str) -> Operand:
        head = _place(names, letter, x.ndim) if letter and letter in names else None
        folded = num_heads if x.ndim == 3 else None
        return Operand(x, _place(names, summed[0], x.ndim), head, folded, scale_of(x))

    both = [operand(x, names) for x, names in zip(operands, (first, second), strict=True)]
    heads = next((o.value.size(o.head) for o in both if o.head is not None), None)
    if key_at[0] == 0:
        return Product(both[1], both[0], lambda query, key: func(equation, key, query), (), heads)
    return Product(both[0], both[1], lambda query, key: func(equation, query, key), (), heads)


def _place(names: str, letter: str, ndim: int) -> int:
    """The dimension of a letter, counted from the end; letters before the dots count from the front."""
    place = names.index(letter)
    return place - ndim if "." in names[place:] else place - len(names)


def _may_be_data(x: Any) -> bool:
    """Not a weight, and not a view of one: a product with a weight is a layer, not attention."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or isinstance(x, nn.Parameter):
        return False
    return not isinstance(x._base, nn.Parameter)
