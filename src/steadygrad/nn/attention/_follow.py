"""Find every attention that runs, however it is written, and hand its queries, keys and logits to the stabilisers.

A `TorchFunctionMode` sees ``F.scaled_dot_product_attention`` as one call, opens ``F.multi_head_attention_forward``,
and follows a product of two tensors through scaling, masks and biases to a softmax over its last dimension.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from steadygrad.nn.attention._products import (
    DIVISIONS,
    FOLLOWED,
    PRODUCTS,
    SCALINGS,
    Operand,
    Scalar,
    by_place,
    factor_of,
    heads_of,
    product_of,
    step_of,
    writes_elsewhere,
)
from steadygrad.nn.attention.logits import max_logit_per_head, max_over_head, soft_capped_attention

if TYPE_CHECKING:
    from steadygrad.nn.attention._edit import Edit

# Calls after which a query or key is still the same vectors: a number it was multiplied by stays on record.
VIEWS = frozenset(
    """
    view reshape transpose transpose_ swapaxes swapdims permute movedim moveaxis contiguous clone unsqueeze squeeze
    flatten unflatten chunk split tensor_split unbind select __getitem__ expand expand_as narrow t mT T repeat
    repeat_interleave to float half bfloat16 type_as
    """.split()
)
DROPOUTS = frozenset("dropout dropout_ feature_dropout alpha_dropout".split())
SDPA_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass
class Frame:
    """A module while it runs."""

    name: str
    module: nn.Module
    edits: list[Edit]
    grad_enabled: bool = field(default_factory=torch.is_grad_enabled)
    num_sites: int = 0
    num_heads: int | None = None  # known inside F.multi_head_attention_forward

    def next_site(self) -> str:
        """The module's name for its first attention in a call, then with a number: ``block``, ``block[1]``."""
        self.num_sites += 1
        return self.name if self.num_sites == 1 else f"{self.name}[{self.num_sites - 1}]"


@dataclass
class Site:
    """One attention in one module."""

    name: str
    module: nn.Module
    index: int
    edits: list[Edit] = field(default_factory=list)

    def operands(self, query: Operand, key: Operand) -> tuple[Tensor, Tensor]:
        for edit in self.edits:
            if edit.changes_operands:
                q, k = edit.operands(self, query, key)
                query, key = replace(query, value=q), replace(key, value=k)
        return query.value, key.value

    @property
    def changes_operands(self) -> bool:
        return any(e.changes_operands for e in self.edits)

    @property
    def cap(self) -> float | None:
        return next((e.cap for e in self.edits if e.cap is not None and e.cap < math.inf), None)

    def measure(self, largest: Callable[[], Tensor]) -> None:
        listeners = [e for e in self.edits if e.listens(self)]
        if listeners:
            found = largest()
            for edit in listeners:
                edit.hear(self, found)


class AttentionMode(TorchFunctionMode):
    """In force while a module with a stabiliser runs; `frames` says which one."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.products = WeakTensorKeyDictionary()  # logits on their way to a softmax
        self.weights = WeakTensorKeyDictionary()  # what came out of a softmax
        self.scales = WeakTensorKeyDictionary()  # the number that a tensor was multiplied by

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._fused(func, args, kwargs)
        if name == "multi_head_attention_forward":
            return self._opened(func, args, kwargs)
        if name == "softmax":
            return self._softmax(func, args, kwargs)
        if name in PRODUCTS or name in SCALINGS or name in DIVISIONS:
            args, kwargs = by_place(args, kwargs)
        first = args[0] if args else kwargs.get("input")
        out = func(*args, **kwargs)
        if name in PRODUCTS and isinstance(out, Tensor):
            self._multiplied(func, name, args, kwargs, out)
        elif self.products and self._follow(func, name, args, kwargs, out):
            pass
        elif self.weights and name in DROPOUTS | FOLLOWED and first in self.weights:
            self.weights[out] = None
        elif name in SCALINGS or name in DIVISIONS:
            self._note_scale(name, args, kwargs, out)
        elif self.scales and name in VIEWS and isinstance(first, Tensor):
            scale = self.scales.get(first)
            for view in out if isinstance(out, (tuple, list)) else (out,):
                if scale is not None:
                    self.scales[view] = scale
        return out

    def _multiplied(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor
    ) -> None:
        product = product_of(func, name, args, kwargs, self.frames[-1].num_heads, self._scale_of)
        if product is None:  # a layer; of the logits, where heads talk
            self._follow(func, name, args, kwargs, out)
            return
        if not any(o.value in self.weights or o.value in self.products for o in (product.query, product.key)):
            device = out.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            self.products[out] = replace(product, autocast=autocast)

    def _scale_of(self, x: Tensor) -> Scalar:
        return self.scales.get(x, 1.0)

    def _note_scale(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        for place in (0, 1):
            factor = factor_of(name, args, kwargs, place)
            if factor is not None and isinstance(args[place], Tensor) and args[place].ndim:
                self.scales[out] = factor * self._scale_of(args[place])
                return

    def _follow(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> bool:
        """Keep logits on record through a call. False if there are none among its arguments."""
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        # logits before what was only made in their shape, such as a mask
        tagged = [(k, x) for k, x in named if isinstance(x, Tensor) and x in self.products]
        place = min(tagged, key=lambda found: bool(self.products[found[1]].lost_in), default=(None, None))[0]
        if place is None:
            return False
        logits = args[place] if isinstance(place, int) else kwargs[place]
        result = logits if out is None else out  # __setitem__
        if not isinstance(result, Tensor) or result.ndim < 2 or not result.is_floating_point():
            return True
        product = self.products[logits]
        followed = name in FOLLOWED and not writes_elsewhere(name, place)
        if followed and result.shape[-2:] == logits.shape[-2:]:
            self.products[result] = product.then(step_of(func, name, args, kwargs, place), result)
        else:
            self.products[result] = replace(product, lost_in=product.lost_in or name)
        return True

    def _site(self) -> Site:
        frame = self.frames[-1]
        _refuse_reentrant_checkpoint(frame)
        index = frame.num_sites
        site = Site(frame.next_site(), frame.module, index)
        site.edits = [e for e in frame.edits if e.wants(site.name)]
        for edit in site.edits:
            edit.sites[site.name] = None
        return site

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        logits = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        product = self.products.get(logits) if isinstance(logits, Tensor) else None
        if product is None or logits is None or dim not in (-1, logits.ndim - 1):
            return self._weighted(func(*args, **kwargs))
        if product.lost_in:
            self._tell_lost(product.lost_in)
            return self._weighted(func(*args, **kwargs))
        site = self._site()
        heads = heads_of(logits) or product.heads
        query, key = product.query, product.key
        if heads is not None:  # heads that show only later, in a view of the logits
            query, key = (
                replace(o, num_heads=heads) if o.value.ndim == 3 and o.head is None else o
                for o in (query, key)
            )
        q, k = site.operands(query, key)
        if site.changes_operands:
            logits = product.logits(q, k)
        seen = logits

        def largest() -> Tensor:
            with torch.no_grad():
                return max_over_head(
                    product.logits(q, k, without_shifts=True) if product.shifted else seen, heads
                )

        site.measure(largest)
        if site.cap is not None:
            logits = product.logits(q, k, site.cap)
        if args:
            return self._weighted(func(logits, *args[1:], **kwargs))
        return self._weighted(func(**{**kwargs, "input": logits}))

    def _weighted(self, weights: Tensor) -> Tensor:
        self.weights[weights] = None
        return weights

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        site = self._site()
        given = {**dict(zip(SDPA_NAMES, args, strict=False)), **kwargs}
        folded = self.frames[-1].num_heads

        def operand(x: Tensor) -> Operand:
            return Operand(
                x, -1, -3 if x.ndim >= 4 else None, folded if x.ndim == 3 else None, self._scale_of(x)
            )

        query, key = site.operands(operand(given.pop("query")), operand(given.pop("key")))
        value = given.pop("value")

        def largest() -> Tensor:
            options = {k: v for k, v in given.items() if k != "dropout_p"}
            return max_logit_per_head(query, key, **options)

        site.measure(largest)
        if site.cap is not None:
            return soft_capped_attention(query, key, value, site.cap, **given)
        return func(query, key, value, **given)

    def _opened(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run torch's own body of multi-head attention with this mode in force inside it.

        The body starts by asking for torch functions, of which this mode is one, and would come back here for
        ever: it runs with globals of its own in which the answer is no.
        """
        body = FunctionType(
            func.__code__, {**vars(F), "has_torch_function": _none}, func.__name__, func.__defaults__
        )
        frame = self.frames[-1]
        before = frame.num_heads
        frame.num_heads = args[4] if len(args) > 4 else kwargs["num_heads"]
        try:
            with self:
                return body(*args, **kwargs)
        finally:
            frame.num_heads = before

    def _tell_lost(self, call: str) -> None:
        name = self.frames[-1].name
        for edit in self.frames[-1].edits:
            if edit.wants(name) and (name, call) not in edit.told:
                edit.told.add((name, call))
                warnings.warn(
                    f"{edit.title} does not reach the softmax in {name or 'the model'!r}: between the product of "
                    f"queries and keys and the softmax stands torch's {call!r}, which is not followed. If that is "
                    "attention, move the call before the product or after the softmax, or use the functions "
                    "of steadygrad.nn.attention in your own code.",
                    stacklevel=2,
                )


def _none(_: Any) -> bool:
    return False


def _refuse_reentrant_checkpoint(frame: Frame) -> None:
    """The second pass of such a checkpoint would run without the stabiliser, and give wrong gradients in silence."""
    if torch.is_grad_enabled() or not frame.grad_enabled:
        return
    caller = sys._getframe()
    while caller is not None:
        code = caller.f_code
        if code.co_name == "forward" and code.co_filename.endswith("checkpoint.py"):
            raise RuntimeError(
                f"{frame.name or 'the model'!r} runs its attention inside torch.utils.checkpoint with "
                "use_reentrant=True: the second pass would run without the stabiliser. Checkpoint the whole "
                "module that holds the attention, which works with both forms."
            )
        caller = caller.f_back  # type: ignore[assignment]
