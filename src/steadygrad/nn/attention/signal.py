"""The largest attention logit of each head as a signal, from a model that exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from steadygrad.nn.attention._edit import Edit
from steadygrad.nn.attention._follow import Site
from steadygrad.nn.attention._forward import install, uninstall


class Listener(Edit):
    """Keeps the largest logit of each head and site since it was last cleared."""

    title = "max_attention_logit"

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, Tensor] = {}

    def listens(self, site: Site) -> bool:
        return True

    def hear(self, site: Site, largest: Tensor) -> None:
        before = self.largest.get(site.name)
        self.largest[site.name] = largest if before is None else torch.maximum(before, largest)


class max_attention_logit(Mapping[str, Tensor]):
    """Read the largest attention logit of each head while a block of code runs.

        S_max^h = max over batch, i, j of  scale * q_i^h . k_j^h + mask_ij

    When to use it: every few hundred steps, to see attention blow up before the loss does; and to decide
    between `qk_norm`, `soft_cap` and `QKClip`, or that none is needed.

    Values in use: QK-clip acts above 100; without it a run with Muon soon went beyond 1000 (Kimi K2).

    Cost: for fused attention its product of queries and keys once more, in float32, for chunks of 1024 queries
    at a time; for attention written out one maximum. Nothing is copied to the host until you read a number.
    Torch's fast path of encoder layers in eval is off inside the block, so that their output may differ in
    the last bits.

    Args:
        model: as it was again after the block.

    In the block and after it, the object maps the name of the module (``"blocks.0.attn"``; ``"blocks.0.attn[1]"``
    for its second attention) to one number for each head, or a single one where heads cannot be told
    (products of three dimensions outside of ``nn.MultiheadAttention``). Over several forward passes it is the
    largest of them. Measured after a `qk_norm` and before a `soft_cap` in force.

    Empty, zero, inf, nan: attention with nothing to attend to gives -inf; an inf or nan in a head shows.

    Example:
        >>> model = nn.MultiheadAttention(8, num_heads=2)
        >>> x = torch.zeros(3, 1, 8)
        >>> with max_attention_logit(model) as seen:
        ...     _ = model(x, x, x)
        >>> {name: largest.tolist() for name, largest in seen.items()}
        {'': [0.0, 0.0]}

    Source: Dehghani et al. (2023, ViT-22B), section 2, https://arxiv.org/abs/2302.05442; Wortsman et al.
        (2023), section 3.1, https://arxiv.org/abs/2309.14322
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.listener = Listener()

    def __enter__(self) -> max_attention_logit:
        install(self.model, self.listener, once=False)
        return self

    def __exit__(self, *error: object) -> None:
        uninstall(self.model, self.listener)

    def __getitem__(self, name: str) -> Tensor:
        return self.listener.largest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.listener.largest)

    def __len__(self) -> int:
        return len(self.listener.largest)

    def __repr__(self) -> str:
        return f"max_attention_logit({self.listener.largest})"
