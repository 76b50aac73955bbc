"""Attention whose logits stay bounded, however it is written: see :mod:`steadygrad.nn.attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from steadygrad.nn.attention import qk_norm, soft_cap
from steadygrad.nn.attention._edit import Edit
from steadygrad.nn.attention._follow import Site
from steadygrad.nn.attention._forward import Handle, install
from steadygrad.nn.attention._products import Operand
from steadygrad.nn.attention.qk_norm import QKNormHandle
from steadygrad.repair.effects._added import AddedParameters
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable


class _OnAttention(Effect):
    """Puts a stabiliser on the attention of every trained model."""

    order = 72

    def __init__(self, value: Any) -> None:
        self._met: set[int] = set()
        self._handles: list[Any] = []

    def models(self, models: Models) -> None:
        for root in models.roots:
            if id(root) not in self._met:
                self._met.add(id(root))
                handle = self._put_on(root)
                handle.edit.must_find = False  # a discriminator beside a generator need not have any
                self._handles.append(handle)

    def _put_on(self, root: nn.Module) -> Handle:
        raise NotImplementedError

    def remove(self) -> None:
        for handle in reversed(self._handles):
            handle.remove()
        self._handles = []


class QKNorm(_OnAttention):
    """Queries and keys normalised, with one learned scale per head.

    The value is ``{}``. The scales start at what queries and keys have in the first batch, so that a trained model
    goes on as it was as far as that can be; see :func:`steadygrad.nn.attention.qk_norm`. They are trained by the
    optimizer that trains the module, from the first step on.
    """

    key = "qk_norm"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._models = Models()
        self._added = AddedParameters()
        self._adopted: set[int] = set()

    def models(self, models: Models) -> None:
        self._models = models
        super().models(models)

    def _put_on(self, root: nn.Module) -> QKNormHandle:
        # One number per head: unequal ones would undo a rotary embedding, behind which they act.
        handle = qk_norm(root, per_dim=False)
        handle.edit.expects_new_scales = True  # they are given to the optimizer: nothing to warn of
        return handle

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for handle in self._handles:
            known = {leaf for pair in handle.edit.names for leaf in pair}
            for module in handle.model.modules() if known and id(handle) not in self._adopted else ():
                for name in known & module._parameters.keys():
                    self._added.adopt(self._models, module, name)
            if known:
                self._adopted.add(id(handle))

    def remove(self) -> None:
        self._added.remove()
        super().remove()


class SoftCap(_OnAttention):
    """Attention logits bounded by a smooth cap. The value is ``{"cap": c}``, c > 0, in the units of the logits."""

    key = "soft_cap"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._cap = float(value["cap"])
        if not 0 < self._cap < math.inf:
            raise NotApplicable(f"the cap must be positive and finite, got {self._cap}")

    def _put_on(self, root: nn.Module) -> Handle:
        return soft_cap(root, cap=self._cap)


class _Scaled(Edit):
    """Queries divided by the square root of their size, in some modules."""

    title = "qk_scale"
    changes_operands = True

    def __init__(self, modules: set[str]) -> None:
        super().__init__()
        self.modules = modules

    def wants(self, name: str) -> bool:
        return name in self.modules

    def operands(self, site: Site, query: Operand, key: Operand) -> tuple[Tensor, Tensor]:
        return query.value * query.value.size(query.feature) ** -0.5, key.value


class QKScale(_OnAttention):
    """The factor 1 / sqrt(d) that attention written by hand has forgotten.

    The value is ``{"modules": [path, ...]}``, those that run attention without it. Others are left as they are.
    """

    key = "qk_scale"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._paths = [str(path) for path in value["modules"]]
        self._models = Models()

    def models(self, models: Models) -> None:
        self._models = models
        super().models(models)

    def _put_on(self, root: nn.Module) -> Handle:
        wanted = {id(self._models.modules[p]) for p in self._paths if p in self._models.modules}
        edit = _Scaled({name for name, module in root.named_modules() if id(module) in wanted})
        install(root, edit)
        return Handle(root, edit)
