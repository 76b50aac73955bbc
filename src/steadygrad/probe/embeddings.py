"""Embeddings of a training without labels: who is shown them, and the numbers that say whether they have
collapsed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from steadygrad._check import positive
from steadygrad.probe.local import readable
from steadygrad.records import NAN, EmbeddingStats

MOST = 256  # samples of a batch that are measured: the spectrum costs the cube of them

embedding_listeners: list[Callable[[Tensor, Tensor | None], None]] = []
"""Called with the embeddings that a loss is given, detached."""


def show(embeddings: Tensor, other: Tensor | None = None) -> None:
    """Show the embeddings of a batch to whoever watches the run: under ``sg.watch`` a collapse is then told of.

    When to use it: in a loop with a loss of your own. The losses of this room do it by themselves.

    Values in use: what the loss compares, so the projector's output and not the predictor's.

    Cost: none while nobody watches; else see `embedding_stats`, on sampled steps only.

    Args:
        embeddings: (N, D), or (N, ...) taken flat; changed in no bit.
        other: the second view of the same samples, of the same shape; None if there is none.

    Raises:
        ValueError: no axis of samples, or two views of different shapes.

    Does nothing inside ``torch.compile``, and for tensors that cannot be read (sparse, meta, under ``torch.func``).

    Example:
        >>> show(torch.randn(8, 4))

    Source: ours.
    """
    if not embeddings.dim():
        raise ValueError("embeddings must be (N, D), got a single number")
    if other is not None and other.shape != embeddings.shape:
        raise ValueError(
            f"both views must have one shape, got {tuple(embeddings.shape)} and {tuple(other.shape)}"
        )
    if embedding_listeners and not torch.compiler.is_compiling():
        first, second = readable(embeddings), readable(other)
        if first is not None:
            for listener in list(embedding_listeners):
                listener(first, second)


@torch.no_grad()
def embedding_stats(embeddings: Tensor, other: Tensor | None = None) -> EmbeddingStats:
    """Every measure of collapse of a batch of embeddings, as plain numbers.

    When to use it: to judge embeddings by hand, of a whole test set for example.

    Values in use: ``spread`` near 1 and ``effective_rank`` in the tens for a net that learns; 0 and 1 for one that
    has collapsed.

    Cost: the eigenvalues of one matrix of min(N, D, 256) rows: 2 ms for 32, 10 ms for 256. One wait for a device.

    Args:
        embeddings: (N, D), or (N, ...) taken flat, any float dtype; of more than 256 samples the first 256 are taken.
        other: the second view of the same samples, or None.

    Returns:
        See :class:`steadygrad.records.EmbeddingStats`. With a nan or inf among the embeddings every measure is nan,
        and so is what a single sample cannot tell.

    Raises:
        ValueError: no samples, or two views of different shapes.

    Example:
        >>> stats = embedding_stats(torch.ones(8, 4))  # all the same: collapsed
        >>> stats.spread, round(stats.effective_rank, 3)
        (0.0, 0.0)

    Source: see `embedding_spread`, `effective_rank`, `alignment` and `uniformity`.
    """
    z = _rows(embeddings)[:MOST]
    pairs = None if other is None else _rows(other)[:MOST]
    if pairs is not None and pairs.shape != z.shape:
        raise ValueError(f"both views must have one shape, got {tuple(z.shape)} and {tuple(pairs.shape)}")
    both = [z] if pairs is None else [z, pairs]
    samples, dims = z.shape
    if not all(bool(v.isfinite().all()) for v in both):  # host sync
        return EmbeddingStats(samples, dims)
    centred = z - z.mean(0)
    return EmbeddingStats(
        samples,
        dims,
        spread=float(embedding_spread(z)) if samples > 1 else NAN,
        effective_rank=float(effective_rank(centred)) if samples > 1 else NAN,
        alignment=NAN if pairs is None else float(alignment(z, pairs)),
        uniformity=float(uniformity(z)) if samples > 1 else NAN,
    )


def embedding_spread(embeddings: Tensor) -> Tensor:
    """How far the embeddings of different samples lie apart, beside their length: 0 if they are all one vector.

        spread = sqrt( sum_j Var_n(u_nj) )        u_n = z_n / ||z_n||

    It is the standard deviation per dimension of the embeddings at unit length, times sqrt(D): 1 where they point in
    all directions, whatever D is.

    When to use it: to see a complete collapse, where every sample has the same embedding and the loss is at its best.

    Values in use: SimSiam that trains keeps near 1, without its stop-gradient it falls to 0 in the first steps.

    Cost: two reads of the embeddings.

    Args:
        embeddings: (N, D), or (N, ...) taken flat, any float dtype.

    Returns:
        A 0-D tensor in [0, 1]; nan if an entry is nan or inf; 0 for one sample. A zero embedding counts as one at the
        origin.

    Raises:
        ValueError: no samples.

    Example:
        >>> embedding_spread(torch.eye(4) - 0.25).item()
        1.0

    Source: Chen & He (2021), section 4.1, https://arxiv.org/abs/2011.10566
    """
    u = unit(_rows(embeddings))
    return (u - u.mean(0)).square().sum(1).mean().sqrt()


def effective_rank(embeddings: Tensor) -> Tensor:
    """RankMe: in how many directions the embeddings lie, smoothly counted.

        exp( - sum_k p_k log p_k )        p_k = sigma_k / sum_j sigma_j,  sigma the singular values of (N, D)

    When to use it: to see a dimensional collapse, where the samples differ, but only along a few directions; and to
    choose between trained encoders without a label.

    Values in use: a healthy encoder uses a good part of min(N, D); random Gaussian embeddings nearly all. Taken of
    centred embeddings it is not led astray by their mean; the paper takes them as they are.

    Cost: the eigenvalues of one matrix of min(N, D) rows.

    Args:
        embeddings: (N, D), or (N, ...) taken flat, any float dtype. Large sets: some 10,000 samples are enough.

    Returns:
        A 0-D tensor in [1, min(N, D)]; 0 if all embeddings are 0; nan if an entry is nan or inf.

    Raises:
        ValueError: no samples.

    Example:
        >>> effective_rank(torch.eye(4)).item(), effective_rank(torch.ones(4, 4)).item()
        (4.0, 1.0)

    Source: Garrido et al. (2023), section 3, https://arxiv.org/abs/2210.02885; Roy & Vetterli (2007)
    """
    z = _rows(embeddings)
    if not bool(z.isfinite().all()):  # host sync; the eigenvalue routine refuses them
        return z.new_full((), math.nan)
    largest = z.abs().amax()
    z = z.double() / torch.where(largest > 0, largest, 1.0)
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    # Below this the squares hold nothing but rounding.
    values = torch.where(values > values[-1] * 1e-12, values, 0.0)
    sigma = values.sqrt()
    total = sigma.sum()
    p = sigma / torch.where(total > 0, total, 1.0)
    entropy = -torch.special.xlogy(p, p).sum()
    return torch.where(total > 0, entropy.exp(), 0.0).to(embeddings_dtype(embeddings))


def alignment(embeddings: Tensor, other: Tensor, power: float = 2.0) -> Tensor:
    """How far the two views of a sample lie apart on the unit sphere: 0 if they are the same.

        mean_n || u_n - v_n ||^power        u, v: the embeddings at unit length

    When to use it: beside `uniformity`. Views that come together while the whole does not spread are a collapse.

    Values in use: power 2; 2 for views that have nothing to do with each other, below 0.5 when trained.

    Cost: one read of both.

    Args:
        embeddings: (N, D), or (N, ...) taken flat, any float dtype.
        other: the second views, of the same shape.
        power: > 0.

    Returns:
        A 0-D tensor in [0, 2^power]; nan if an entry is nan or inf.

    Raises:
        ValueError: no samples, different shapes, or a power that is not positive and finite.

    Example:
        >>> alignment(torch.eye(2), torch.eye(2).flip(0)).item()
        2.0

    Source: Wang & Isola (2020), section 4.1, https://arxiv.org/abs/2005.10242
    """
    power = positive("power", power, finite=True)
    z, w = _rows(embeddings), _rows(other)
    if z.shape != w.shape:
        raise ValueError(f"both views must have one shape, got {tuple(z.shape)} and {tuple(w.shape)}")
    return (unit(z) - unit(w)).square().sum(1).pow(power / 2).mean()


def uniformity(embeddings: Tensor, t: float = 2.0) -> Tensor:
    """How evenly the embeddings cover the unit sphere: the lower the better, 0 if they are all one point.

        log mean_{n<m} exp( -t || u_n - u_m ||^2 )        u: the embeddings at unit length

    When to use it: beside `alignment`. It is what a contrastive loss pushes down beside it.

    Values in use: t = 2; -4 t / 2 = -4 at the best in many dimensions, -2 to -3.9 when trained.

    Cost: the (N, N) distances: N^2 D.

    Args:
        embeddings: (N, D), or (N, ...) taken flat, any float dtype; N at least 2.
        t: > 0.

    Returns:
        A 0-D tensor, at most 0; nan if an entry is nan or inf.

    Raises:
        ValueError: fewer than 2 samples, or t that is not positive and finite.

    Example:
        >>> round(uniformity(torch.eye(3)).item(), 3)
        -4.0

    Source: Wang & Isola (2020), section 4.1, https://arxiv.org/abs/2005.10242
    """
    t = positive("t", t, finite=True)
    u = unit(_rows(embeddings))
    if len(u) < 2:
        raise ValueError("uniformity needs at least 2 samples, got 1")
    a, b = torch.triu_indices(len(u), len(u), 1, device=u.device)
    lengths = u.square().sum(1)
    apart = (lengths[a] + lengths[b] - 2 * (u @ u.T)[a, b]).clamp(min=0)
    return (-t * apart).logsumexp(0) - math.log(len(apart))


def unit(z: Tensor) -> Tensor:
    """Rows at length 1, in float32 at least. A row of zeros stays one, and has no gradient."""
    z = z.to(embeddings_dtype(z))
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return torch.where(norm == 0, 0.0, z / torch.where(norm == 0, 1.0, norm))


def embeddings_dtype(z: Tensor) -> torch.dtype:
    """What is computed in: float64 stays, all else is taken to float32."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _rows(z: Tensor) -> Tensor:
    """(N, D) in float32 at least."""
    if z.dim() < 1 or z.numel() == 0:
        raise ValueError(f"embeddings must be (N, D) with at least one of each, got {tuple(z.shape)}")
    return z.reshape(len(z), -1).to(embeddings_dtype(z))
