"""QK-clip: shrink the query and key projections of a head whose logits have become too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steadygrad.nn.attention._follow import Site
from steadygrad.nn.attention._forward import check_example, install, try_out, uninstall
from steadygrad.nn.attention._projections import (
    CutAtLayers,
    FindProjections,
    Projections,
    Rows,
    by_name,
    of_multihead,
)
from steadygrad.nn.attention.signal import Listener


@torch.no_grad()
def qk_clip_(query: Sequence[Tensor], key: Sequence[Tensor], largest: Tensor, tau: float = 100.0) -> Tensor:
    """Scale the query and key weights of each head in place so that its largest logit is at most ``tau``.

        gamma_h = min(1, tau / S_max^h)        W_q^h <- sqrt(gamma_h) W_q^h        W_k^h <- sqrt(gamma_h) W_k^h

    When to use it: in a model of your own that reports the largest logit of each head. To have it measured
    and applied, see `QKClip`.

    Values in use: tau 100 (Kimi K2, 1 trillion parameters; no loss spike in 15.5 trillion tokens).

    Cost: one read and write of the weights, no sync with the host.

    Args:
        query: weights and biases of the query projection; the first dimension of each is num_heads * head_dim,
            head after head. Changed in place.
        key: the same for the keys. With fewer heads than the queries (grouped, multi-query) they are shared:
            they stay as they are and the queries take the whole gamma, as the paper does for its shared key.
        largest: (num_heads,), S_max of each head, in the units of the softmax.
        tau: largest logit allowed, > 0.

    Returns:
        gamma, (num_heads,), in float32 at least.

    Empty, zero, inf, nan: heads at or below tau stay as they are bit for bit, and so do those whose S_max is
    not finite: there is nothing to learn from an overflow.

    Example:
        >>> w_q, w_k = torch.ones(2, 1), torch.ones(2, 1)  # two heads of one dimension
        >>> qk_clip_([w_q], [w_k], torch.tensor([400.0, 50.0])).tolist()
        [0.25, 1.0]
        >>> w_q.flatten().tolist()
        [0.5, 1.0]

    Source: Kimi Team (2025, Kimi K2), section 2.1 and Algorithm 1, https://arxiv.org/abs/2507.20534
    """
    heads = largest.numel()
    if largest.ndim != 1 or not heads:
        raise ValueError(f"largest must hold one number for each head, got shape {tuple(largest.shape)}")
    if not query or not key:
        raise ValueError("query and key must each hold a weight at least")
    width = query[0].size(0)
    wrong = [tuple(w.shape) for w in query if w.size(0) != width or width % heads]
    wrong += [tuple(w.shape) for w in key if w.size(0) != key[0].size(0) or w.size(0) * heads % width]
    if wrong:
        raise ValueError(f"the first dimension of each weight must divide into {heads} heads, got {wrong}")
    head_dim = width // heads
    of_query, of_key = (
        [Rows(w, 0, torch.arange(w.size(0), device=w.device) // head_dim) for w in ws] for ws in (query, key)
    )
    found = Projections(heads, of_query, of_key, shared_keys=key[0].size(0) != width)
    gamma = _gamma(largest, tau)
    _scale_([(found, gamma)])
    return gamma


class QKClip:
    """Measure the largest logit of each attention head and shrink the projections of those beyond ``tau``.

        S_max^h = max over batch, i, j of  scale * q_i^h . k_j^h
        gamma_h = min(1, tau / S_max^h)        W_q^h <- sqrt(gamma_h) W_q^h        W_k^h <- sqrt(gamma_h) W_k^h

    over every forward pass in training mode since the last step, in every attention of the model. The function
    that the model computes is not changed until a head goes beyond tau, and then only in that head.

    When to use it: long runs with Muon, or with any optimizer under which `max_attention_logit` climbs;
    attention in which `qk_norm` is not possible, as in multi-head latent attention.

    Values in use: tau 100 (Kimi K2; there it stopped acting by itself after 70,000 steps).

    Cost: what `max_attention_logit` costs, in every forward pass of a step that measures; then one read and
    write of the query and key projections. ``every=10`` measures in every tenth step only. No sync with the host.

    Args:
        model: measured in place, its classes are not changed.
        example_input: a tensor, a tuple of arguments or a dict of keyword arguments. The model is run on it once to
            find the projections of attention other than ``nn.MultiheadAttention``: the linear layers nearest
            to queries and keys, through reshapes, splits and rotary embeddings, row by row for each head.
        tau: largest logit allowed, > 0 and finite.
        query, key, num_heads: instead of that, patterns of the names of the projections (``"*.q_proj"``,
            ``"*.k_proj"``, each an ``nn.Linear`` with its heads one after another) and the number of query heads.
            Nobody then checks that no norm stands between projection and product.
        every: measure and clip in every so many steps.

    Call ``step()`` after ``optimizer.step()``. It returns gamma for each attention that was measured.
    ``sites`` names the attention found, ``remove()`` ends the measuring. Sharded weights (FSDP) are refused.

    Under torch.distributed the largest logits of all ranks are taken together first, so that replicas stay
    equal. Every rank must call ``step()``; one that ran no forward pass since the last takes part as well, and is
    told what the others measured. All projections are then reported, 1 for those that nobody measured.

    Limits: an additive bias is part of the logit but does not shrink. Values made from the same rows as keys
    would shrink with them.

    Empty, zero, inf, nan: a head whose S_max is not finite is left alone in that step. Steps without a
    forward pass change nothing.

    Raises:
        ValueError: queries or keys are normalised (QK-norm), or come from no linear layer.

    Example:
        >>> model = nn.MultiheadAttention(8, num_heads=2)
        >>> clip = QKClip(model, tau=1e-3)
        >>> x = torch.randn(5, 1, 8)
        >>> _ = model(x, x, x)
        >>> gamma = clip.step()[""]
        >>> _ = model(x, x, x)
        >>> bool((clip.listener.largest[""] <= 1.001e-3).all())
        True

    Source: Kimi Team (2025, Kimi K2), section 2.1 and Algorithm 1, https://arxiv.org/abs/2507.20534
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any = None,
        *,
        tau: float = 100.0,
        query: str | None = None,
        key: str | None = None,
        num_heads: int | None = None,
        every: int = 1,
    ) -> None:
        _check_tau(tau)
        check_example(example_input)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if None in (query, key, num_heads) and (query, key, num_heads) != (None, None, None):
            raise ValueError("query, key and num_heads belong together: pass all three or none")
        self.model = model
        self.tau = tau
        self.every = every
        self.num_steps = 0
        self.listener = _TrainingListener()
        self.projections = {
            name: of_multihead(m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)
        }
        self.named: dict[str, Projections] = {}
        if query is not None and key is not None and num_heads is not None:
            self.named = by_name(model, query, key, num_heads)
        elif example_input is not None:
            self.projections |= _found_by_running(model, example_input)
        if not self.projections and not self.named:
            raise ValueError(
                "QKClip found no nn.MultiheadAttention in the model: pass example_input, so that the projections "
                "of other attention can be found, or their names as query=, key= and num_heads="
            )
        _check_weights(model, self.projections | self.named)
        install(model, self.listener)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.listener.sites)

    def remove(self) -> None:
        uninstall(self.model, self.listener)

    @torch.no_grad()
    def step(self) -> dict[str, Tensor]:
        """Clip by what was measured since the last step, and measure anew. Gamma of each head by site."""
        known = self.named | self.projections
        found = {site: self._projections_of(site) for site in self.listener.largest}
        unknown = [site for site, owner in found.items() if owner is None]
        if unknown:
            raise RuntimeError(
                f"QKClip does not know the projections of the attention in {unknown}: pass example_input, or "
                "query=, key= and num_heads="
            )
        owners = {site: owner for site, owner in found.items() if owner is not None}
        measured: dict[str, Tensor] = {}  # by projections, which may serve several sites
        for site, owner in owners.items():
            largest, num_heads = self.listener.largest[site].reshape(-1), known[owner].num_heads
            if largest.numel() != num_heads:
                raise RuntimeError(
                    f"the attention in {site!r} has {largest.numel()} heads, its projections {num_heads}: "
                    "pass the right num_heads"
                )
            measured[owner] = torch.maximum(measured[owner], largest) if owner in measured else largest
        if self.listener.on and dist.is_available() and dist.is_initialized():
            measured = _over_ranks(measured, known)
        gammas = {owner: _gamma(largest, self.tau) for owner, largest in measured.items()}
        _scale_([(known[owner], gamma) for owner, gamma in gammas.items()])
        elsewhere = {owner: gamma for owner, gamma in gammas.items() if owner not in owners.values()}
        gammas = {site: gammas[owner] for site, owner in owners.items()} | elsewhere
        self.listener.largest = {}
        self.num_steps += 1
        self.listener.on = self.num_steps % self.every == 0
        return gammas

    def _projections_of(self, site: str) -> str | None:
        """The name of its projections: that of the site; if given by name, that of a module around or inside."""
        if site in self.projections:
            return site
        module = site.partition("[")[0]
        around = [n for n in self.named if n == module or _within(module, n)]
        inside = [n for n in self.named if _within(n, module)]
        if around:
            return max(around, key=len)
        return inside[0] if len(inside) == 1 else None

    def __repr__(self) -> str:
        known = [*self.projections, *self.named]
        return f"QKClip(tau={self.tau}, every={self.every}, projections of {known})"

    def state_dict(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps, "largest": dict(self.listener.largest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_steps = state["num_steps"]
        self.listener.on = self.num_steps % self.every == 0
        self.listener.largest = dict(state["largest"]) if self.listener.on else {}


class _TrainingListener(Listener):
    title = "QKClip"

    def __init__(self) -> None:
        super().__init__()
        self.on = True

    def listens(self, site: Site) -> bool:
        return self.on and site.module.training

    def hear(self, site: Site, largest: Tensor) -> None:
        if site.changes_operands:
            raise ValueError(
                f"QKClip has no effect behind the QK-norm in force in {site.name!r}: remove one of the two"
            )
        super().hear(site, largest)


def _found_by_running(model: nn.Module, example_input: Any) -> dict[str, Projections]:
    cut = CutAtLayers()
    finder = FindProjections(cut)
    install(model, finder)
    try:
        with cut:
            try_out(model, finder, example_input, grad=True)
    finally:
        uninstall(model, finder)
    if finder.refused:
        reasons = "; ".join(f"{name or 'the model'!r}: {why}" for name, why in finder.refused.items())
        raise ValueError(f"QKClip cannot act on {reasons}")
    return finder.found


def _check_weights(model: nn.Module, projections: Mapping[str, Projections]) -> None:
    own = {id(p) for p in model.parameters()}
    for name, found in projections.items():
        for rows in (*found.query, *found.key):
            if id(rows.parameter) not in own or hasattr(rows.parameter, "to_local"):
                raise ValueError(
                    f"a projection of {name or 'the model'!r} is computed from other parameters or sharded over "
                    "ranks: scaling it in place has no lasting effect"
                )


def _check_tau(tau: float) -> None:
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}; Kimi K2 takes 100")


def _gamma(largest: Tensor, tau: float) -> Tensor:
    _check_tau(tau)
    wide = largest.to(torch.promote_types(largest.dtype, torch.float32))
    return torch.where(wide.isfinite() & (wide > tau), tau / wide, 1.0)


def _scale_(jobs: Sequence[tuple[Projections, Tensor]]) -> None:
    """One read and write of each parameter; a factor of 1 leaves every bit as it was."""
    todo: dict[int, tuple[Rows, Tensor]] = {}
    for found, gamma in jobs:
        split = gamma if found.shared_keys else gamma.sqrt()
        pairs = [(rows, split) for rows in found.query]
        pairs += [(rows, split) for rows in found.key if not found.shared_keys]
        for rows, of_head in pairs:
            factors = rows.factors(of_head)
            before = todo.get(id(rows.parameter))
            # entries that two projections share shrink once, by the smaller factor
            todo[id(rows.parameter)] = (rows, factors if before is None else before[1].minimum(factors))
    for rows, factors in todo.values():
        parameter = rows.parameter
        shape = [1] * parameter.ndim
        shape[rows.dim] = -1
        parameter.copy_(parameter * factors.view(shape))  # the product is float32 at least


def _over_ranks(measured: Mapping[str, Tensor], known: Mapping[str, Projections]) -> dict[str, Tensor]:
    """The largest of all ranks, for every projection: what a rank measured must not decide what it sends."""
    parameters = {name: found.query[0].parameter for name, found in known.items()}
    device = next(iter(parameters.values())).device
    dtype = torch.float32
    for parameter in parameters.values():
        dtype = torch.promote_types(dtype, parameter.dtype)
    none = {name: torch.full((found.num_heads,), -torch.inf) for name, found in known.items()}
    flat = torch.cat([measured.get(name, none[name]).to(device, dtype) for name in known])
    # what a maximum makes of nan differs between backends
    flat = torch.where(flat.isnan(), float("inf"), flat)
    dist.all_reduce(flat, dist.ReduceOp.MAX)
    parts = flat.split([found.num_heads for found in known.values()])
    return {name: part.to(parameters[name].device) for name, part in zip(known, parts, strict=True)}


def _within(inner: str, outer: str) -> bool:
    return outer == "" or inner.startswith(outer + ".")
