"""The schemes of ``initialise`` for residual nets and Transformers, and mu-P."""

from __future__ import annotations

from torch import nn

from steadygrad.init._job import Job
from steadygrad.init._recipes import branch_ends, suited, xavier, zero_padding
from steadygrad.init.follow import Branch, Layer
from steadygrad.init.mup import mup_multipliers
from steadygrad.init.residual import branch_scale, fixup_scale
from steadygrad.init.schemes import auto, xavier_normal
from steadygrad.init.transformer import deepnorm_constants, t_fixup_scale


def fixup(job: Job) -> None:
    """Fixup: branch weights He times L^(-1/(2m-2)), branch ends and output head 0, learned branch scales 1.

    When to use it: residual nets without normalisation. Queries and keys, which do not reach the sum, stay at
    He. The paper also adds scalar biases and multipliers to the model, which is yours to do. See
    ``fixup_branch_``.

    Values in use: none to set; L and m are counted in your model.

    Cost: none.

    Source: Zhang, Dauphin & Ma (2019), the box "Fixup initialization", https://arxiv.org/abs/1901.09321
    """
    branches = _needed_branches(job)
    for layer in job.layers():
        suited(job, layer)
    within = {w: b for b in branches for w in b.weights}
    for layer in list(job.layers()):
        if layer.weight not in job.rows:
            continue
        branch = within.get(layer.weight)
        head = layer.head and layer.kind != "embedding"  # a tied embedding of 0 would never leave it
        if head or (branch is not None and layer.weight in branch.ends):
            _zero(job, layer, "fixup: output head" if head else "fixup: branch end")
        elif branch is not None and not _is_query_or_key(layer):
            factor = fixup_scale(len(branches), branch.depth)
            job.scale(layer, factor, f"fixup: x {len(branches)}^(-1/{2 * branch.depth - 2})")
    for branch in branches:
        for name in branch.scale:
            job.set_vector(name, 1.0)
        if branch.normed:
            job.notes.append(
                "fixup is meant for nets without normalisation; this one has norms in its branches"
            )
            break


def skipinit(job: Job) -> None:
    """Every residual branch starts at 0, so that the net starts as its skips; the rest as in ``auto``.

    Zeroed is the learned scale of the branch if it has one (its weights then stay, or nothing would ever get
    a gradient), else the scale of a norm that ends it, else its last weight. SkipInit and ReZero are this one
    rule: both put a learned scalar of 0 before the sum.

    When to use it: residual nets of any depth, with or without norms.

    Values in use: none to set. The learned scalar starts at 0 (De & Smith; Bachlechner), a zeroed norm is
    Goyal et al. (2017), section 5.1.

    Cost: none.

    Source: De & Smith (2020), https://arxiv.org/abs/2002.10444; Bachlechner et al. (2021),
    https://arxiv.org/abs/2003.04887
    """
    branches = _needed_branches(job)
    for layer in job.layers():
        suited(job, layer)
    for branch in branches:
        if branch.scale:
            for name in branch.scale:
                job.set_vector(name, 0.0)
        elif branch.norm:
            job.set_vector(branch.norm, 0.0)
        elif branch.norm == "":
            job.notes.append(
                f"the branch behind {branch.ends[0]} ends in a norm without a scale: it cannot start at 0"
            )
        else:
            for layer in branch_ends(job, branch):
                _zero(job, layer, "branch end")


def t_fixup(job: Job) -> None:
    """T-Fixup: Xavier weights, embeddings N(0, 1/d), then value, output and feed-forward weights scaled down.

    0.67 N^(-1/4) in an encoder, (9N)^(-1/4) in a decoder with cross-attention and for embeddings

    When to use it: Transformers without LayerNorm and without warm-up. A packed q, k, v projection is taken to
    be stacked in that order.

    Values in use: none to set; N is counted in your model.

    Cost: none.

    Source: Huang et al. (2020), the list "T-Fixup initialization",
    http://proceedings.mlr.press/v119/huang20f.html
    """
    stacks = _stacks(job, "t_fixup")
    for layer in list(job.layers()):
        if layer.kind == "embedding":
            count, _ = max(stacks.values(), key=lambda s: s[1])
            std = layer.shape[-1] ** -0.5 * t_fixup_scale(count, decoder=True)
            job.normal(layer, std, "normal", note="t_fixup: embedding")
            zero_padding(job, layer)
        else:
            xavier(job, layer, uniform=True, gain=1.0)
            job.bias(layer)
    for branch in job.followed.branches:
        if branch.stream in stacks:
            count, decoder = stacks[branch.stream]
            _scale_transformer(job, branch, t_fixup_scale(count, decoder), "t_fixup")
    if any(b.normed for b in job.followed.branches):
        job.notes.append(
            "t_fixup is meant for Transformers without LayerNorm; this one has norms in its branches"
        )


def deepnorm(job: Job) -> None:
    """DeepNorm's weights: Xavier normal, with gain beta for values, outputs and feed-forward layers.

    When to use it: post-norm Transformers of tens to a thousand layers, whose skip the model itself multiplies
    by alpha; the report names alpha. A packed q, k, v projection is taken to be stacked in that order.

    Values in use: none to set; alpha and beta follow from the number of layers (``deepnorm_constants``).

    Cost: none.

    Source: Wang et al. (2022), figure 2, https://arxiv.org/abs/2203.00555
    """
    stacks = _stacks(job, "deepnorm")
    encoder = sum(count for count, decoder in stacks.values() if not decoder)
    decoders = sum(count for count, decoder in stacks.values() if decoder)
    constants = deepnorm_constants(encoder, decoders)
    if not decoders:
        job.notes.append("no cross-attention: encoder-only and decoder-only constants are the same")
    xavier_normal(job, gain=1.0)
    for name, one in zip(("encoder", "decoder"), constants, strict=True):
        if one is None:
            continue
        job.notes.append(
            f"{name}: multiply the skip by alpha = {one.alpha:.4f} in the model: LayerNorm(alpha * x + branch(x))"
        )
        for branch in job.followed.branches:
            if branch.stream in stacks and stacks[branch.stream][1] == (name == "decoder"):
                _scale_transformer(job, branch, one.beta, "deepnorm")


def gpt2(job: Job, std: float = 0.02) -> None:
    """GPT-2: every weight and embedding N(0, std^2), biases 0, each of N residual branch ends times 1/sqrt(N).

    When to use it: pre-norm Transformers of usual width. Without norms the signal shrinks at every weight; the
    report says so.

    Values in use: std 0.02, N = 2L for L layers (GPT-2); 0.02 suits widths near 1,000.

    Cost: none.

    Source: Radford et al. (2019), section 2.3 (GPT-2)
    """
    for layer in list(job.layers()):
        job.normal(layer, std, "normal")
        job.bias(layer)
        if layer.kind == "embedding":
            zero_padding(job, layer)
    factor = branch_scale(max(1, len(job.followed.branches)))
    for branch in job.followed.branches:
        for layer in branch_ends(job, branch):
            job.scale(layer, factor, f"branch end: x 1/sqrt({len(job.followed.branches)})")
    if not any(x.normed for x in (*job.followed, *job.followed.branches)):
        job.notes.append(
            "gpt2 is meant for nets with norms; this one has none, so its signal shrinks at every weight"
        )


def mup(job: Job, base: nn.Module | None = None, zero_output: bool = False) -> None:
    """mu-P: as ``auto``, with output weights at variance 1/fan_in^2, and a learning-rate factor for every parameter.

    ``base`` is the same model at the width of the tuning. The report's ``adam_groups`` and ``sgd_groups``
    carry the factors.

    When to use it: to tune the learning rate on a small model and train a wide one.

    Values in use: ``zero_output=True`` starts the output weights at 0, as the paper advises (appendix D.2):
    the updates are then alike from the smallest widths on.

    Cost: none.

    Source: Yang et al. (2022), table 3, https://arxiv.org/abs/2203.03466
    """
    if not isinstance(base, nn.Module):
        raise TypeError(f"mup needs base=, the same model at its base width, got {type(base).__name__}")
    factors = mup_multipliers(job.model, base, job.followed.layers)
    auto(job)
    for layer in job.layers():
        std = factors[layer.params[0]].std if layer.params[0] in factors else 1.0
        if layer.weight not in job.rows:
            continue
        if zero_output and layer.head and layer.kind != "embedding":  # at the base width as well
            _zero(job, layer, "mup output weight")
        elif std != 1:
            job.scale(layer, std, f"mup output weight: x {std:.4g}")
    job.multipliers = {name: (f.adam, f.sgd) for name, f in factors.items()}
    if any(b.attention for b in job.followed.branches):
        job.notes.append("mup: divide attention logits by d, not sqrt(d), in the model")


def _zero(job: Job, layer: Layer, note: str) -> None:
    job.write(layer, job.read(layer) * 0.0, "zeros", 0.0, note)
    for name in layer.bias:
        job.set_vector(name, 0.0)


def _needed_branches(job: Job) -> tuple[Branch, ...]:
    if not job.followed.branches:
        raise ValueError(
            "this scheme needs residual branches, and no sum of a skip and a branch was seen in the model"
        )
    return job.followed.branches


def _stacks(job: Job, scheme: str) -> dict[int, tuple[int, bool]]:
    """Residual streams with attention: number of layers, and whether it is a decoder with cross-attention."""
    stacks = {}
    for stream in {b.stream for b in job.followed.branches if b.attention}:
        attention = [b for b in job.followed.branches if b.stream == stream and b.attention]
        crossing = sum(b.cross for b in attention)
        stacks[stream] = (crossing or len(attention), bool(crossing))
    if not stacks:
        raise ValueError(
            f"{scheme} needs a Transformer, and no residual branch with attention was seen in the model"
        )
    return stacks


def _scale_transformer(job: Job, branch: Branch, factor: float, note: str) -> None:
    """Value, output and feed-forward weights of a branch times a factor; of packed q, k, v the value third."""
    for weight in branch.weights:
        if weight not in job.rows:
            continue
        layer = job.followed[weight]
        roles = set(layer.attention)
        text = f"{note}: x {factor:.4g}"
        if _is_query_or_key(layer):
            continue
        if {"query", "value"} <= roles:
            values = job.read(layer).clone()
            third = values.shape[0] // 3
            values[2 * third :] *= factor
            row = job.rows[weight]
            job.write(layer, values, row.method, row.gain, text + " on the value third")
        else:
            job.scale(layer, factor, text)


def _is_query_or_key(layer: Layer) -> bool:
    """Only makes attention logits: its scale does not reach the stream."""
    return bool(layer.attention) and set(layer.attention) <= {"query", "key"}
