"""Attention in a graph: how large the logits are, and how spread the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steadygrad.graph.walk import Graph, Node, op, saved
from steadygrad.graph.weights import PRODUCTS, Use
from steadygrad.records import NAN, AttentionStats

MASKED = -1e4  # what lies below is a mask, not a logit
ROWS = 4096  # rows of a softmax that are looked at
BATCH = 8  # samples, each with all heads, of which logits are computed again
QUERIES = 64
NEAR = 200  # nodes between a softmax and the weights above it
HOPS = 8
# What may lie between a softmax and the products before and after it.
VIEWS = (
    "View",
    "UnsafeView",
    "Expand",
    "ReshapeAlias",
    "Clone",
    "ToCopy",
    "Transpose",
    "Permute",
    "Unsqueeze",
    "Squeeze",
)
AFTER = (*VIEWS, "Mul", "NativeDropout", "Dropout")
BEFORE = (*VIEWS, "Mul", "Div", "Add", "Sub", "MaskedFill", "Where")

Numbers = tuple[float, float, int]  # largest logit, entropy, keys


@torch.no_grad()
def read_attention(graph: Graph, uses: Sequence[Use]) -> list[tuple[int, AttentionStats]]:
    """Every softmax over keys: of products of queries and keys written by hand, and of torch's fused attention.

    Each with the id of the weight next above it, which the caller has a name for. A softmax counts if its result is
    multiplied with something computed: that at the end of a classifier is not.
    """
    owner = {use.node: id(use.weight) for use in uses}
    found = []
    for node in graph.nodes:
        name = op(node)
        if "ScaledDotProduct" in name:
            stats = _fused(node)
        elif name in ("Softmax", "SafeSoftmax") and _feeds_product(graph, node, owner):
            stats = _written_out(node)
        else:
            continue
        if stats is not None:
            logit, entropy, keys = stats
            found.append((_above(graph, node, owner), AttentionStats("", logit, entropy, keys)))
    return found


def _feeds_product(graph: Graph, node: Node, owner: Mapping[Node, int]) -> bool:
    """Whether a product with something computed takes the weights, behind dropout and views."""
    front = {node}
    for _ in range(HOPS):
        front = {user for n in front for user in graph.consumers(n)}
        if any(op(n) in ("Bmm", "Baddbmm", "Mm") and n not in owner for n in front):
            return True
        front = {n for n in front if op(n) in AFTER}
    return False


def _written_out(node: Node) -> Numbers | None:
    weights, axis = saved(node, "result"), saved(node, "dim")
    if not isinstance(weights, Tensor) or weights.dim() < 2 or not isinstance(axis, int):
        return None
    weights = weights.movedim(axis - (1 << 64) if axis >= 1 << 63 else axis, -1)  # -1 comes as 2**64 - 1
    keys = weights.shape[-1]
    rows = weights.reshape(-1, keys)
    return _largest_logit(node), _entropy(rows[:: max(1, rows.shape[0] // ROWS)].float()), keys


def _largest_logit(node: Node) -> float:
    """From the queries and keys that the product above the softmax has kept; nan if it is not found.

    Of the first ``BATCH * 2`` products and ``QUERIES`` rows. A mask that is added or filled in is not looked at, so
    that logits behind it count.
    """
    front = [(node, 1.0)]
    for _ in range(HOPS):
        above = [(p, scale) for n, scale in front for p, _ in n.next_functions[:2] if p is not None]
        front = []
        for n, scale in above:
            name = op(n)
            if name in PRODUCTS:
                return _largest_product(n, name) * abs(scale)
            if name in BEFORE:
                front.append((n, scale * _factor(n, name)))
    return NAN


def _largest_product(node: Node, name: str) -> float:
    query, key = (saved(node, kept) for _, kept in PRODUCTS[name])
    if not (isinstance(query, Tensor) and isinstance(key, Tensor)) or query.dim() < 2 or key.dim() < 2:
        return NAN
    query, key = (
        (query[: 2 * BATCH, :QUERIES], key[: 2 * BATCH]) if query.dim() == 3 else (query[:QUERIES], key)
    )
    return float((query.float() @ key.float()).abs().amax())  # host sync


def _factor(node: Node, name: str) -> float:
    """What a multiplication or division by one number does; 1 for everything else."""
    other = saved(node, "other") if name in ("Mul", "Div") else None
    if isinstance(other, Tensor):
        other = float(other) if other.numel() == 1 else None  # host sync
    if not isinstance(other, (int, float)) or not other:
        return 1.0
    return float(other) if name == "Mul" else 1.0 / other


def _fused(node: Node) -> Numbers | None:
    query, key = saved(node, "query"), saved(node, "key")
    if not (isinstance(query, Tensor) and isinstance(key, Tensor)) or query.dim() != 4 or not key.numel():
        return None
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    if key.shape[1] != heads:
        key = key.repeat_interleave(heads // key.shape[1], 1)  # grouped queries
    given = saved(node, "scale")
    scale = float(given) if isinstance(given, (int, float)) else width**-0.5
    step = max(1, queries // QUERIES)
    logits = (query[:BATCH, :, ::step].float() @ key[:BATCH].float().transpose(-1, -2)) * scale
    if saved(node, "is_causal"):
        rows = torch.arange(queries, device=query.device)[::step, None]
        logits = logits.masked_fill(torch.arange(keys, device=query.device) > rows, -math.inf)
    for name in ("attn_mask", "attn_bias"):
        mask = saved(node, name)
        if isinstance(mask, Tensor):
            mask = mask.expand(batch, heads, queries, keys)[:BATCH, :, ::step]
            logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, -math.inf)
    real = logits[logits > MASKED]
    largest = float(real.abs().amax()) if real.numel() else NAN  # host sync
    return largest, _entropy(torch.softmax(logits, -1).reshape(-1, keys)), keys


def _entropy(rows: Tensor) -> float:
    """Mean of entropy / log(number of keys), masked ones too: what underflows to 0 looks the same as a mask."""
    rows = rows[torch.isfinite(rows).all(-1)]  # a row whose keys are all masked
    if not rows.shape[0] or rows.shape[1] < 2:
        return NAN
    entropy = torch.special.entr(rows).sum(-1)
    return float(entropy.mean()) / math.log(rows.shape[1])  # host sync


def _above(graph: Graph, node: Node, owner: Mapping[Node, int]) -> int:
    """Id of the weight whose product is next above: that of the queries or keys. 0 if there is none near."""
    seen, front = {node}, [node]
    while front and len(seen) < NEAR:
        front = [p for n in front for p in graph.inputs(n) if p is not None and p not in seen]
        seen.update(front)
        for parent in front:
            if parent in owner:
                return owner[parent]
    return 0
