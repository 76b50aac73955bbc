"""QK-norm as a drop-in for a model that exists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.nn.attention._edit import Edit
from steadygrad.nn.attention._follow import Site
from steadygrad.nn.attention._forward import Handle, check_example, install, try_out, uninstall
from steadygrad.nn.attention._products import Operand
from steadygrad.nn.attention.normalise import rms_normalise

Normalise = Callable[[Tensor], Tensor]


class QKNormHandle(Handle):
    """A QK-norm in force on a model: `Handle` with the parameters of its scales."""

    edit: _QKNorm

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The learned scales by their names in the model, in the order in which the attention ran."""
        if not self.sites:
            raise RuntimeError(
                "the scales of qk_norm are made when attention runs: run one forward pass first, or pass "
                "example_input to qk_norm"
            )
        names = {leaf for pair in self.edit.names for leaf in pair}
        for name, parameter in self.model.named_parameters():
            if name.rpartition(".")[2] in names:
                yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The learned scales: ``optimizer.add_param_group({"params": list(handle.parameters())})``."""
        for _, parameter in self.named_parameters():
            yield parameter

    def remove(self) -> None:
        uninstall(self.model, self.edit)
        names = {leaf for pair in self.edit.names for leaf in pair}
        for module in self.model.modules():
            for name in names & module._parameters.keys():
                delattr(module, name)
        self.edit.names.clear()
        self.edit.sites.clear()


class _QKNorm(Edit):
    title = "qk_norm"
    changes_operands = True

    def __init__(self, normalise: Normalise, learned: bool, per_dim: bool, modules: str) -> None:
        super().__init__()
        self.normalise = normalise
        self.learned = learned
        self.per_dim = per_dim
        self.modules = modules
        self.expects_new_scales = True
        self.names: set[tuple[str, str]] = set()

    def wants(self, name: str) -> bool:
        return fnmatchcase(name, self.modules)

    def operands(self, site: Site, query: Operand, key: Operand) -> tuple[Tensor, Tensor]:
        suffix = f"_{site.index}" if site.index else ""
        names = (f"qk_norm_query_scale{suffix}", f"qk_norm_key_scale{suffix}")
        if names[0] not in site.module._parameters:
            self._register(site, names, query, key)
        scales = [getattr(site.module, name) for name in names]
        return tuple(self._apply(o, s, site) for o, s in zip((query, key), scales, strict=True))  # type: ignore

    def _apply(self, operand: Operand, scale: Tensor, site: Site) -> Tensor:
        x, feature, head = _unfolded(operand)
        heads = 1 if head is None else x.size(head)
        if scale.size(0) != heads or scale.size(1) not in (1, x.size(feature)):
            raise ValueError(
                f"the scale of qk_norm in {site.name!r} is for {scale.size(0)} heads of {scale.size(1)} dimensions, "
                f"got queries or keys of {heads} heads of {x.size(feature)}: attention whose shape changes from call "
                "to call needs modules of its own, or leave this one out with modules="
            )
        shape = [1] * x.ndim
        shape[feature] = scale.size(1)
        if head is not None:
            shape[head] = heads
            scale = scale if head < feature else scale.mT
        y = _normalised(x, feature, self.normalise) * scale.reshape(shape)
        return (y * operand.scale).to(x.dtype).reshape(operand.value.shape)

    @torch.no_grad()
    def _register(self, site: Site, names: tuple[str, str], query: Operand, key: Operand) -> None:
        """Scales that give queries and keys of this batch, head by head, the mean square that they had."""
        own = next((p for p in site.module.parameters() if p.is_floating_point()), query.value)
        for name, operand in zip(names, (query, key), strict=True):
            x, feature, head = _unfolded(operand)
            factor = _mean_square(x, head) / _mean_square(_normalised(x, feature, self.normalise), head)
            factor = factor.sqrt() / torch.as_tensor(operand.scale, device=x.device).abs()
            factor = torch.where(factor.isfinite() & (factor > 0), factor, 1.0)
            scale = factor.unsqueeze(-1).expand(-1, x.size(feature) if self.per_dim else 1)
            with torch.inference_mode(False), torch.no_grad():
                fresh = nn.Parameter(torch.empty(scale.shape, dtype=own.dtype, device=x.device), self.learned)
                fresh.copy_(scale.clone())
            site.module.register_parameter(name, fresh)
        self.names.add(names)
        if self.learned and not self.expects_new_scales and not self.told:
            self.told.add((site.name, ""))
            warnings.warn(
                f"qk_norm made scales in this forward pass, the first in {site.name or 'the model'!r}: an optimizer "
                "made earlier does not train them. Pass example_input to qk_norm, or learned=False, or give the "
                "optimizer handle.parameters().",
                stacklevel=2,
            )


def qk_norm(
    model: nn.Module,
    example_input: Any = None,
    *,
    learned: bool = True,
    per_dim: bool = True,
    normalise: Normalise = rms_normalise,
    modules: str = "*",
) -> QKNormHandle:
    """Normalise the queries and keys of every attention in a model, however it is written.

        q <- g_q * q / rms(q)        k <- g_k * k / rms(k)        for each head, just before q k^T

    with learned scales g_q and g_k. The logits can then grow only through the scales, however large the
    projections become.

    When to use it: the maximum attention logit grows (`max_attention_logit`), the loss spikes at learning
    rates that a smaller model stands. Adding it in the middle of a run has cured runs that clipping and
    skipping did not.

    What is preserved: the scales start at the root mean square that queries and keys have in the first batch,
    head by head, so that logits keep their size, and the function is the same to the last digits where all
    vectors of a head are equally long. That some tokens have longer queries or keys than others is lost:
    that is what QK-norm does.

    What is found: ``F.scaled_dot_product_attention``, ``F.multi_head_attention_forward`` (so
    ``nn.MultiheadAttention``, the encoder and decoder layers, whose fast path in eval is off), and a product
    (``@``, ``matmul``, ``bmm``, ``baddbmm``, ``mm``, ``einsum``) of two tensors, none of them a weight, that reaches
    a softmax over its last dimension through scaling, masks, biases and reshapes. Not found: ``flex_attention``,
    kernels of other packages, a softmax written with ``exp``. A sum of two products is normalised in the first only.
    A module of yours that ran without attention in its first call is not watched from then on.

    Values in use: RMSNorm with a learned scale, as here (ViT-22B, Qwen3, Gemma 3); LayerNorm
    (``normalise=layer_normalise``) in StableLM 2 12B. There one scale per dimension serves all heads or each has
    its own; and it stands before the rotary embedding, where this one stands after it (``per_dim``).

    Cost: one pass over queries and keys; attention that you wrote out yourself computes its product twice.
    Under torch.compile the modules that run attention run uncompiled (a graph break each; ``fullgraph=True``
    raises). Checkpoint whole modules, not a function inside the one that runs attention.

    Args:
        model: changed in place, its classes are not.
        example_input: a tensor, a tuple of arguments or a dict of keyword arguments. The model is run on it once,
            without gradient (buffers and random numbers are put back), which makes the scales: do it before
            you make the optimizer, wrap the model in DDP or load a checkpoint that holds them. Raises ValueError
            if no attention ran. Without it the first forward pass makes the scales, and warns.
        learned: False keeps the scales as they are made.
        per_dim: one scale for each dimension of a head; False: one number for each head. Take False with
            rotary embeddings: the scales act after the rotation, and unequal ones would undo that logits depend
            on distances only.
        normalise: a function of (..., head_dim): `rms_normalise`, `layer_normalise`, `l2_normalise`, a module.
        modules: pattern (as for file names) that the name of a module with attention must match.

    Returns:
        A `QKNormHandle`. The scales are parameters of the modules that run attention, named
        ``qk_norm_query_scale`` and ``qk_norm_key_scale``, (heads, head_dim) each, thus in
        ``model.parameters()`` and ``state_dict()``; ``handle.parameters()`` gives them alone, ``handle.sites`` the
        names of the attention found, ``handle.remove()`` undoes everything.

    Empty, zero, inf, nan: zero vectors stay zero. A nan or inf in a vector makes that vector nan. Scales made
    from a batch that is empty, zero or not finite in a head start at 1 there.

    Example:
        >>> model = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> handle = qk_norm(model, torch.randn(4, 3, 8))
        >>> [(name, tuple(p.shape)) for name, p in handle.named_parameters()]
        [('self_attn.qk_norm_query_scale', (2, 4)), ('self_attn.qk_norm_key_scale', (2, 4))]
        >>> handle.remove()

    Source: Henry et al. (2020), section 3, https://arxiv.org/abs/2010.04245; Dehghani et al. (2023, ViT-22B),
        section 2, https://arxiv.org/abs/2302.05442
    """
    check_example(example_input)
    edit = _QKNorm(normalise, learned, per_dim, modules)
    install(model, edit)
    handle = QKNormHandle(model, edit)
    if example_input is not None:
        try:
            try_out(model, edit, example_input)
        except BaseException:
            handle.remove()
            raise
    edit.expects_new_scales = False
    return handle


def _unfolded(operand: Operand) -> tuple[Tensor, int, int | None]:
    """The vectors with their heads in a dimension of their own; where the feature and the heads are."""
    x = operand.value
    if operand.head is None and operand.num_heads is not None and x.ndim == 3:
        return x.unflatten(0, (-1, operand.num_heads)), operand.feature, -3
    return x, operand.feature, operand.head


def _normalised(x: Tensor, feature: int, normalise: Normalise) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return normalise(wide.movedim(feature, -1)).movedim(-1, feature)


def _mean_square(x: Tensor, head: int | None) -> Tensor:
    """One number for each head; nan of nothing."""
    rows = x.unsqueeze(0) if head is None else x.movedim(head, 0)
    return rows.to(torch.promote_types(x.dtype, torch.float32)).flatten(1).square().mean(1)
