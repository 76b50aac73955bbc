"""Losses that pull the views of a sample together and push other samples away."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from steadygrad._check import positive
from steadygrad.probe.embeddings import show, unit
from steadygrad.selfsup._views import views


def info_nce(query: Tensor, key: Tensor, temperature: float = 0.1) -> Tensor:
    """Tell the key of each query among the keys of the batch: InfoNCE.

        mean_n -log( exp(q_n . k_n / T) / sum_m exp(q_n . k_m / T) )        q, k at unit length

    When to use it: two kinds of views that are not alike (a picture and its text, a state and its future); for two
    augmentations of one kind `nt_xent` has twice the negatives.

    Values in use: T = 0.07 (MoCo, CLIP's start), 0.1 to 0.5. At 100 all negatives weigh the same, and the embeddings
    fall into a few directions (rule E102). Batches of 256 and more; it works from about 32.

    Cost: N^2 D, and N^2 numbers of memory.

    Args:
        query: (N, D), N at least 2; any float dtype, computed in float32 at least.
        key: (N, D); row n belongs to row n of ``query``. Detach it where a teacher makes it.
        temperature: T > 0.

    Returns:
        A 0-D tensor, at least 0; log N for embeddings that are all alike. nan if an entry is nan or inf. A zero
        embedding has cosine 0 with all, and no gradient.

    Raises:
        ValueError: not two (N, D) of one shape, one sample only, or a temperature that is not positive and finite.

    Example:
        >>> round(info_nce(torch.eye(4), torch.eye(4), temperature=0.1).item(), 4)
        0.0001

    Source: van den Oord, Li & Vinyals (2018), Eq. 4, https://arxiv.org/abs/1807.03748
    """
    temperature = positive("temperature", temperature, finite=True)
    q, k = views(query, key, ("query", "key"), least=2)
    show(query, key)
    logits = unit(q) @ unit(k).T / temperature
    return F.cross_entropy(logits, torch.arange(len(q), device=q.device))


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss: tell the other view of each sample among all 2N - 1 views of the batch.

        mean_i -log( exp(u_i . u_j(i) / T) / sum_{k != i} exp(u_i . u_k / T) )        i over 2N views, j(i) its partner

    When to use it: the first thing to try without labels where batches are large: it needs no teacher, no
    predictor, and cannot collapse completely.

    Values in use: T = 0.1 to 0.5 (0.5 on CIFAR-10, 0.1 on ImageNet). At 100 the embeddings fall into a few directions
    (rule E102). A projector of 2 layers before it, dropped afterwards.

    Cost: 4 N^2 D, and 4 N^2 numbers of memory.

    Args:
        z1: (N, D) first views, N at least 2; any float dtype, computed in float32 at least.
        z2: (N, D) second views of the same samples.
        temperature: T > 0.

    Returns:
        A 0-D tensor, at least 0; log(2N - 1) for embeddings that are all alike. nan if an entry is nan or inf. A zero
        embedding has cosine 0 with all, and no gradient.

    Raises:
        ValueError: not two (N, D) of one shape, one sample only, or a temperature that is not positive and finite.

    Example:
        >>> round(nt_xent(torch.eye(4), torch.eye(4), temperature=0.1).item(), 4)
        0.0003

    Source: Chen et al. (2020), Eq. 1, https://arxiv.org/abs/2002.05709
    """
    temperature = positive("temperature", temperature, finite=True)
    a, b = views(z1, z2, least=2)
    show(z1, z2)
    u = unit(torch.cat([a, b]))
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    logits = (u @ u.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(len(u), device=u.device).roll(len(a))
    return F.cross_entropy(logits, partner)
