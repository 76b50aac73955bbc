"""Soft-capped attention logits as a drop-in for a model that exists."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch  # noqa: F401 - for the example
from torch import nn

from steadygrad.nn.attention._edit import Edit
from steadygrad.nn.attention._forward import Handle, check_example, install, try_out
from steadygrad.nn.attention.logits import check_cap


class _SoftCap(Edit):
    title = "soft_cap"

    def __init__(self, cap: float, modules: str) -> None:
        super().__init__()
        self.cap = cap
        self.modules = modules

    def wants(self, name: str) -> bool:
        return fnmatchcase(name, self.modules)


def soft_cap(model: nn.Module, example_input: Any = None, *, cap: float = 50.0, modules: str = "*") -> Handle:
    """Cap the attention logits of a model smoothly, however its attention is written.

        S <- cap * tanh(S / cap)        before the mask, in every attention

    When to use it: the maximum attention logit grows without bound and you want a bound that holds from the
    next step on, without new parameters. Logits far above the cap get no gradient: on a net that is there
    already `QKClip` or `qk_norm` bring them back, a cap only hides them.

    Values in use: cap 50 (Gemma 2).

    Cost: ``F.scaled_dot_product_attention`` is replaced by attention written out, with logits (B, H, L, S) in
    memory; attention that you wrote out yourself computes its product twice. Under torch.compile the modules
    that run attention run uncompiled (a graph break each; ``fullgraph=True`` raises).

    Args:
        model: changed in place, its classes are not. Attention is found as it runs: see `qk_norm`.
        example_input: a tensor, a tuple of arguments or a dict of keyword arguments: the model is run on it
            once, without gradient, and a ValueError is raised if no attention ran. Without it a warning comes
            at the end of the first forward pass.
        cap: largest absolute logit before masks and biases, > 0; inf changes nothing.
        modules: pattern (as for file names) that the name of a module with attention must match.

    Returns:
        A `Handle`: ``handle.sites`` names the attention found, ``handle.remove()`` undoes it.

    Empty, zero, inf, nan: as `soft_capped_attention`: masks stay masks, nan and overflow stay visible.

    Example:
        >>> model = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> handle = soft_cap(model, torch.randn(1, 3, 8), cap=50.0)
        >>> handle.sites
        ('self_attn',)
        >>> handle.remove()

    Source: Gemma Team (2024, Gemma 2), section 2, "Logit soft-capping", https://arxiv.org/abs/2408.00118
    """
    check_cap(cap)
    check_example(example_input)
    edit = _SoftCap(cap, modules)
    install(model, edit)
    handle = Handle(model, edit)
    if example_input is not None:
        try:
            try_out(model, edit, example_input)
        except BaseException:
            handle.remove()
            raise
    return handle
