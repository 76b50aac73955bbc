"""The residual connection: any function, where the norm stands, how the branch and the skip are scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from steadygrad._check import fraction, number
from steadygrad.nn.residual._factory import factory
from steadygrad.nn.residual.drop_path import DropPath

Placement = Literal["pre", "post", "sandwich"]
PLACEMENTS: tuple[Placement | None, ...] = ("pre", "post", "sandwich", None)


class Residual(nn.Module):
    """Add what a function computes to its input, with the norm, the scale and the dropout where you want them.

        pre:        y = alpha S(x) + P(s D(f(N(x))))
        post:       y = N(alpha S(x) + P(s D(f(x))))
        sandwich:   y = alpha S(x) + P(s D(N'(f(N(x)))))
        None:       y = alpha S(x) + P(s D(f(x)))

    f the function, N and N' norms, D dropout, s the scale of the branch, P stochastic depth, S the shortcut
    (the identity if none is given), alpha the fixed scale of the skip. With a ``gate`` the sum becomes
    gate(S(x), P(s D(..))).

    When to use it: any net of more than some ten layers. Pre keeps a clean path for the gradient and is the
    choice for depth; post trains worse without a warm-up, and is what DeepNorm mends by alpha; sandwich
    (peri-LN) also bounds what the branch adds; None needs a scale that starts small (`SkipInit`,
    1 / sqrt(2L)), or the init of the weights has to care (``init.initialise(scheme="fixup")``).

    Values in use: scale 1 (He 2016), 1 / sqrt(2L) for L blocks (GPT-2 puts it into the weights),
    ``SkipInit()``, ``LayerScale(C, 1e-5)``; skip_scale (2N)^(1/4) for N Transformer layers (DeepNorm, with
    placement "post"; ``init.deepnorm_constants`` gives it); dropout 0.1 (Vaswani); drop_path up to 0.5.

    Cost: the function, one norm (two for sandwich), one sum. Dropout, scale and stochastic depth cost
    nothing when they are off.

    Args:
        fn: any module or function; called as ``fn(x, *args, **kwargs)``. If it returns a tuple (recurrent
            layers, attention), its first entry is the branch, and the tuple is returned with the first entry
            replaced.
        normalized_shape: handed to ``norm``, as a rule the number of channels; needed unless placement is
            None.
        placement: "pre", "post", "sandwich", or None for no norm.
        norm: makes a norm from ``normalized_shape``: `torch.nn.LayerNorm`, `torch.nn.RMSNorm`,
            `torch.nn.BatchNorm2d`, ``partial(torch.nn.GroupNorm, 8)``, ...
        scale: s, a fixed finite number, or a module that scales (`SkipInit`, `LayerScale`).
        skip_scale: alpha, finite.
        dropout: probability of D, 0 to 1.
        drop_path: probability of P, 0 to 1, for each example.
        batch_dim: dimension of the examples, for ``drop_path``.
        shortcut: a module for S where the shapes differ, as a 1 x 1 convolution.
        gate: a module called as ``gate(skip, branch)`` instead of the sum: `GRUGate` and its kin.

    Called with x and whatever else fn takes, it returns y.

    Empty, zero, nan: an empty batch gives an empty one. A zero branch gives alpha S(x) (its norm for post).
    An inf or nan in x or the branch stays visible in y.

    Raises:
        ValueError: branch and skip differ in shape (a sum that broadcasts would hide the mistake).

    Example:
        >>> import torch
        >>> block = Residual(nn.Linear(8, 8), 8, placement="pre", scale=0.5)
        >>> x = torch.randn(2, 8)
        >>> torch.allclose(block(x), x + 0.5 * block.fn(nn.functional.layer_norm(x, (8,))))
        True

    Source: He, Zhang, Ren & Sun (2016), equations 1 and 2, https://arxiv.org/abs/1603.05027; pre and post:
    Xiong et al. (2020), section 3, https://arxiv.org/abs/2002.04745; sandwich: Ding et al. (2021),
    https://arxiv.org/abs/2105.13290, and Kim et al. (2025), https://arxiv.org/abs/2502.02732; alpha: Wang et
    al. (2022), figure 2, https://arxiv.org/abs/2203.00555
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        normalized_shape: int | Sequence[int] | None = None,
        *,
        placement: Placement | None = "pre",
        norm: Callable[..., nn.Module] = nn.LayerNorm,
        scale: float | nn.Module = 1.0,
        skip_scale: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        batch_dim: int = 0,
        shortcut: nn.Module | None = None,
        gate: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"fn must be a module or a function, got {type(fn).__name__}")
        if placement not in PLACEMENTS:
            raise ValueError(f"placement must be 'pre', 'post', 'sandwich' or None, got {placement!r}")
        if placement is not None and normalized_shape is None:
            raise ValueError(
                f"placement {placement!r} needs normalized_shape (the number of channels): "
                "give it, or set placement=None for no norm"
            )
        if gate is not None and skip_scale != 1.0:
            raise ValueError(f"skip_scale {skip_scale} has no place beside a gate: leave one of the two out")
        if placement is not None:
            factory("norm", norm)
        where = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}

        def made(wanted: bool) -> nn.Module | None:
            return norm(normalized_shape, **where) if wanted else None

        self.placement = placement
        self.norm = made(placement in ("pre", "sandwich"))
        self.fn = fn
        self.branch_norm = made(placement == "sandwich")
        self.dropout = nn.Dropout(fraction("dropout", dropout)) if dropout else None
        self.scale = scale if isinstance(scale, nn.Module) else number("scale", scale)
        self.drop_path = DropPath(drop_path, batch_dim) if fraction("drop_path", drop_path) else None
        self.skip_scale = number("skip_scale", skip_scale)
        self.shortcut = shortcut
        self.gate = gate
        self.post_norm = made(placement == "post")

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.fn(input if self.norm is None else self.norm(input), *args, **kwargs)
        branch, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        if self.branch_norm is not None:
            branch = self.branch_norm(branch)
        if self.dropout is not None:
            branch = self.dropout(branch)
        if isinstance(self.scale, nn.Module):
            branch = self.scale(branch)
        elif self.scale != 1.0:
            branch = branch * self.scale
        if self.drop_path is not None:
            branch = self.drop_path(branch)
        y = self._joined(input if self.shortcut is None else self.shortcut(input), branch)
        if self.post_norm is not None:
            y = self.post_norm(y)
        return y if rest is None else (y, *rest)

    def _joined(self, skip: Tensor, branch: Tensor) -> Tensor:
        if skip.shape != branch.shape:
            raise ValueError(
                f"the branch has shape {tuple(branch.shape)}, the skip {tuple(skip.shape)}: give a shortcut= "
                "module that maps the input to the branch's shape"
            )
        if self.gate is not None:
            return self.gate(skip, branch)
        return (skip if self.skip_scale == 1.0 else skip * self.skip_scale) + branch

    def extra_repr(self) -> str:
        parts = [f"placement={self.placement!r}"]
        if not isinstance(self.scale, nn.Module) and self.scale != 1.0:
            parts.append(f"scale={self.scale:.6g}")
        if self.skip_scale != 1.0:
            parts.append(f"skip_scale={self.skip_scale:.6g}")
        return ", ".join(parts)
