"""Cut or fold the time dimension of a batch, however its tensors are nested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from steadygrad import _check

Dims = int | tuple[int, ...]


def truncate(batch: Any, length: int, dim: Dims | Mapping[Any, Dims] = 1) -> Any:
    """Cut the time dimension of every tensor in a nested batch; views, nothing is copied.

    When to use it: on a batch from elsewhere; `TruncateCollate` does it in the loader.

    Values in use: dim 1 for batches of shape (B, T, ...).

    Cost: none.

    Args:
        batch: a tensor, or tuples, named tuples, lists and dicts of such; anything else passes.
        length: tokens to keep, at least 1; a tensor that is shorter stays.
        dim: the time dimension of all tensors that have so many; or a dict from the keys or places of the
            outermost level to their time dimension or dimensions, such as
            ``{"input_ids": 1, "mask": (2, 3)}``; what is not in it stays whole. Give the dict where a tensor
            has other dimensions there: one-hot labels of shape (B, C) would lose classes.

    Returns the same nesting. Values, nan or not, are never looked at.

    Example:
        >>> import torch
        >>> x, y = truncate((torch.zeros(2, 16), torch.zeros(2)), length=8)
        >>> tuple(x.shape), tuple(y.shape)
        ((2, 8), (2,))

    Source: Li et al. (2022), the Sequence Length Warmup method, https://arxiv.org/abs/2108.06084
    """
    _check.count("length", length, 1)
    return _mapped(batch, dim, lambda t, d: _cut(t, length, d))


def _cut(tensor: Tensor, length: int, dims: Dims) -> Tensor:
    for d in (dims,) if isinstance(dims, int) else dims:
        if -tensor.ndim <= d < tensor.ndim and tensor.shape[d] > length:
            tensor = tensor.narrow(d, 0, length)
    return tensor


def fold(batch: Any, length: int, dim: Mapping[Any, Dims] | None = None) -> Any:
    """Fold long sequences into more, shorter ones: the tokens stay, (B, T, ...) -> (B floor(T / L), L, ...).

    When to use it: causal language models, where every piece is a sample of its own and no token shall be
    lost; the batch grows as the length shrinks. Pieces after the first begin in mid-sentence.

    Values in use: the "reshape" of MosaicML Composer and DeepSpeed.

    Cost: none, or a copy where L does not divide T.

    Args:
        batch: a tensor, or tuples, named tuples, lists and dicts of such.
        length: L, tokens, at least 1; a shorter T stays. T mod L tokens at the end are dropped.
        dim: a dict as in `truncate`, whose values must be 1, to fold only some entries; the others then keep
            the old number of samples.

    Returns the same nesting. A tensor without a time dimension raises ValueError: which of the pieces would
    it belong to? Values, nan or not, are never looked at.

    Example:
        >>> import torch
        >>> fold(torch.arange(10).reshape(1, 10), length=4)
        tensor([[0, 1, 2, 3],
                [4, 5, 6, 7]])

    Source: Li et al. (2022), the Sequence Length Warmup method, https://arxiv.org/abs/2108.06084
    """
    _check.count("length", length, 1)
    return _mapped(batch, 1 if dim is None else dim, lambda t, d: _folded(t, length, d))


def _folded(tensor: Tensor, length: int, dim: Dims) -> Tensor:
    if dim != 1 or tensor.ndim < 2:
        raise ValueError(
            f"only dimension 1 of a tensor of shape (B, T, ...) can be folded, got shape {tuple(tensor.shape)} and "
            f"dim {dim}: use truncate, or name the entries to fold in dim"
        )
    pieces = tensor.shape[1] // length
    if pieces == 0:
        return tensor
    whole = tensor.narrow(1, 0, pieces * length)
    return whole.reshape(tensor.shape[0] * pieces, length, *tensor.shape[2:])


def _mapped(batch: Any, dim: Any, change: Callable[[Tensor, Any], Tensor]) -> Any:
    """``change`` on every tensor; a dict of dims chooses among the outermost entries."""
    if isinstance(dim, Mapping):
        if not isinstance(batch, (Mapping, tuple, list)):
            raise TypeError(f"dim is a dict, so the batch must have entries, got {type(batch).__name__}")
        places = set(batch) if isinstance(batch, Mapping) else set(range(len(batch)))
        if not set(dim) <= places:
            raise ValueError(
                f"dim names {sorted(map(str, set(dim) - places))}, the batch has {sorted(map(str, places))}"
            )
        return _rebuilt(batch, lambda k, v: _mapped(v, dim[k], change) if k in dim else v)
    if isinstance(batch, Tensor):
        return change(batch, dim)
    return _rebuilt(batch, lambda k, v: _mapped(v, dim, change))


def _rebuilt(batch: Any, of: Callable[[Any, Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        new = {k: of(k, v) for k, v in batch.items()}
        return new if type(batch) is dict else type(batch)(new)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(of(i, v) for i, v in enumerate(batch)))
    if isinstance(batch, (tuple, list)):
        return type(batch)(of(i, v) for i, v in enumerate(batch))
    return batch


def owned(batch: Any) -> Any:
    """Tensors that are views of a larger storage, copied."""
    if isinstance(batch, Tensor):
        return batch if batch.untyped_storage().nbytes() == batch.nbytes else batch.clone()
    return _rebuilt(batch, lambda k, v: owned(v))
