"""DyT: a tanh in place of a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class DyT(nn.Module):
    """A tanh in the place of a norm: bounded, elementwise, without statistics.

        y = weight * tanh(alpha x) + bias        alpha a learned scalar

    When to use it: the norms of a transformer trained from scratch (`replace_norms_with_dyt`); one pass over the
    values, and no example or position sees another. It bounds what follows by |weight| + |bias|, and its
    derivative by |alpha weight|.

    Limits: it is another function than the norm that it replaces, so that a trained model must be trained
    further. Its authors found it no substitute for batch norm in convolutional nets, and that the wider a language
    model, the smaller alpha must start. In GPT-2 of 64M parameters it did better than a layer norm on 1M tokens and
    worse on 118M (Verma 2026, https://arxiv.org/abs/2604.23434).

    Values in use: alpha 0.5 (vision, speech, DNA); LLaMA: 0.8 before attention and 0.2 elsewhere at 7B, 0.6
    and 0.15 at 13B, 0.2 and 0.05 at 34B and 70B, with a learned scalar behind the embedding that starts at
    sqrt(width) (the paper).

    Cost: elementwise; one parameter more than the norm.

    Args:
        normalized_shape: the last dimensions of the input, as in ``nn.LayerNorm``.
        alpha_init: first alpha, finite.
        elementwise_affine: False leaves out weight and bias.
        bias: False leaves out the bias.

    Called with (..., *normalized_shape) it returns the same shape and dtype.

    Empty, zero, inf, nan: nothing gives nothing, 0 gives the bias, an inf the bound of its side, a nan a nan; no entry
    touches another. Note that an inf is hidden here, as tanh(inf) = 1.

    Example:
        >>> DyT(2)(torch.tensor([[0.0, 1000.0]])).tolist()
        [[0.0, 1.0]]

    Source: Zhu, Chen, He, LeCun & Liu (2025), section 4, https://arxiv.org/abs/2503.10622
    """

    # nn.TransformerEncoderLayer's fast path in evaluation would compute layer norms with weight and bias. It
    # is taken if norm1.eps == norm2.eps: nan equals nothing.
    eps = float("nan")

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        alpha_init: float = 0.5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape or any(n < 0 for n in shape):
            raise ValueError(f"normalized_shape must be one or more sizes, got {normalized_shape}")
        if not abs(alpha_init) < float("inf"):
            raise ValueError(f"alpha_init must be finite, got {alpha_init}")
        self.normalized_shape, self.alpha_init = shape, float(alpha_init)
        self.elementwise_affine = elementwise_affine
        self.alpha = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            value = nn.Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype))
            self.register_parameter(name, value if wanted else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """alpha to ``alpha_init``, weight 1, bias 0."""
        nn.init.constant_(self.alpha, self.alpha_init)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if tuple(input.shape[-len(self.normalized_shape) :]) != self.normalized_shape:
            raise ValueError(
                f"the last dimensions of input must be {self.normalized_shape}, got {tuple(input.shape)}"
            )
        y = (self.alpha * input).tanh()
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, alpha_init={self.alpha_init}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )


def replace_norms_with_dyt(
    model: nn.Module,
    alpha_init: float = 0.5,
    norms: Sequence[type[nn.Module]] = (nn.LayerNorm, nn.RMSNorm),
) -> dict[str, DyT]:
    """Put a `DyT` in the place of every layer norm and RMS norm of a model. In place.

        LN(x) * weight + bias   ->   tanh(alpha x) * weight + bias

    with the very same weight and bias parameters, so that an optimizer that holds them holds them still; a norm
    without a bias gets none. Only alpha is new: build the optimizer afterwards, or add the alphas to it.

    When to use it: before the training of a transformer. The function of the model changes; see `DyT`.

    Values in use: see `DyT`; for other values at some places, set ``alpha`` of what is returned.

    Cost: none.

    Args:
        model: changed in place.
        alpha_init: first alpha of all, finite.
        norms: the classes to replace, and no subclasses of theirs, which may compute something else. Any class
            over the last dimensions with a ``weight``, such as a library's own RMS norm, may be added.

    Returns:
        path -> the new module; a norm that the model holds at two paths is one module at both.

    Raises:
        ValueError: nothing to replace, or the model itself is a norm. Nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        >>> sorted(replace_norms_with_dyt(model))
        ['1']

    Source: Zhu, Chen, He, LeCun & Liu (2025), section 4, https://arxiv.org/abs/2503.10622
    """
    kinds = tuple(norms)
    if type(model) in kinds:
        raise ValueError(
            f"model is itself a {type(model).__name__}: write DyT(normalized_shape) in its place"
        )
    found = {
        path: module for path, module in model.named_modules(remove_duplicate=False) if type(module) in kinds
    }
    if not found:
        others = sorted({type(m).__name__ for m in model.modules() if "norm" in type(m).__name__.lower()})
        raise ValueError(
            f"model has no {' or '.join(k.__name__ for k in kinds)} to replace"
            + (f"; it has {', '.join(others)}: name those classes in norms=, if they fit" if others else "")
        )
    new = {module: _dyt_for(path, module, alpha_init) for path, module in found.items()}
    for path, module in found.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new[module])
    return {path: new[module] for path, module in found.items()}


def _dyt_for(path: str, norm: nn.Module, alpha_init: float) -> DyT:
    """A DyT with the parameters of a norm, and their device, dtype and mode."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    shape = getattr(norm, "normalized_shape", None if weight is None else weight.shape)
    if shape is None:
        raise ValueError(
            f"{path} ({type(norm).__name__}) has neither normalized_shape nor weight: no size to take"
        )
    like = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
    dyt = DyT(tuple(shape), alpha_init, weight is not None, bias is not None, **like)
    if weight is not None:
        dyt.weight = weight
    if bias is not None:
        dyt.bias = bias
    return dyt.train(norm.training)
