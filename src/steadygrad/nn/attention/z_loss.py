"""z-loss: keep the normaliser of a softmax near one."""

from __future__ import annotations

import torch
from torch import Tensor


def z_loss(
    logits: Tensor,
    coefficient: float = 1e-4,
    target: Tensor | None = None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """Penalise logits that drift away together: add it to the loss.

        L_z = c / N * sum_n (log Z_n)^2        log Z_n = log sum_j exp(x_nj)

    Cross-entropy does not see a number added to all logits of a row; this term does, and holds log Z at 0.
    The router z-loss of mixtures of experts is the same function on the logits of the router.

    When to use it: the output logits of a language model grow over a long run (a rising maximum logit, a loss
    that wanders in bf16), or the router of a mixture of experts does.

    Values in use: ``coefficient`` 1e-4 on the output logits (PaLM), 1e-3 on router logits (ST-MoE).

    Cost: one logsumexp over the logits and its gradient; the logits are read once more in float32.

    Args:
        logits: of any shape; float32 is used inside for half precision.
        coefficient: c, >= 0 and finite.
        target: class indices of the shape of the logits without ``dim``; rows whose target is
            ``ignore_index`` do not count. None counts all rows.
        ignore_index: as in ``F.cross_entropy``.
        mask: bool, of the shape of the logits without ``dim`` or one that expands to it; rows where it is
            False do not count. Rows that do not count give no gradient, whatever is in them.
        dim: the dimension of the classes or experts; ``F.cross_entropy`` has them at 1.

    Returns:
        A number, at least float32, with gradient: the mean over the rows that count.

    Empty, zero, inf, nan: without a row that counts it is 0. Zero logits give log(C)^2. Finite below 1e19;
    beyond, the square leaves float32. A nan or +inf that counts gives nan or inf, never a hidden one; -inf is
    a class that is switched off, and a row of nothing else gives inf: mask it.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
        >>> round(z_loss(logits, coefficient=1.0, mask=torch.tensor([True, False])).item(), 4)  # log(2)^2
        0.4805

    Source: Chowdhery et al. (2022, PaLM), section 5, https://arxiv.org/abs/2204.02311; Zoph et al. (2022,
        ST-MoE), the router z-loss, https://arxiv.org/abs/2202.08906
    """
    if not 0 <= coefficient < float("inf"):
        raise ValueError(f"coefficient must be at least 0 and finite, got {coefficient}")
    if not logits.is_floating_point() or logits.ndim == 0:
        raise TypeError(
            f"logits must be a float tensor of one dimension or more, got {logits.dtype} of {logits.ndim}"
        )
    rows = logits.movedim(dim, -1)
    counts = torch.ones(rows.shape[:-1], dtype=torch.bool, device=logits.device)
    if target is not None:
        if target.shape != counts.shape:
            raise ValueError(
                f"target must have the shape of the logits without the classes, {tuple(counts.shape)}, "
                f"got {tuple(target.shape)}"
            )
        counts = counts & (target != ignore_index)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool (True counts), got {mask.dtype}: compare it with 0 first")
        counts = counts & mask.expand(counts.shape)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # zeros instead of the rows that do not count: an inf in them would give a gradient of nan
    log_z = torch.where(counts.unsqueeze(-1), rows, 0.0).logsumexp(-1)
    squares = torch.where(counts, log_z.square(), 0.0)
    return coefficient * squares.sum() / counts.sum().clamp(min=1)
