"""What is known of operations by name: which make infinities on purpose, which only carry values along."""

from __future__ import annotations

import math
import re
from typing import Any

# Make values out of nothing or put them in where told: what is not finite there was meant, or is unset memory.
CREATORS = frozenset(
    "full full_like new_full fill masked_fill where scalar_tensor empty empty_like empty_strided new_empty "
    "new_empty_strided empty_permuted constant_pad_nd index_fill index_put masked_scatter scatter lift_fresh "
    "resize set".split()
)
# Move values without arithmetic. They may overflow when they go to a narrower type.
CARRIERS = frozenset(
    "view _unsafe_view reshape _reshape_alias expand slice select transpose permute t unbind split "
    "split_with_sizes chunk squeeze unsqueeze as_strided detach alias clone copy _to_copy contiguous cat stack index "
    "index_select gather flip roll repeat tril triu narrow unfold diagonal lift_fresh movedim real imag conj "
    "_conj view_as_real view_as_complex to take embedding masked_select index_put _pin_memory pin_memory "
    "slice_scatter select_scatter embedding_renorm".split()
)
# An intended -inf stays intended through these: scaling scores, joining masks, softmax, picking the largest.
KEEP_MASKS = CARRIERS | frozenset(
    "add sub mul div where masked_fill max min amax amin maximum minimum sort topk clamp softmax log_softmax "
    "logsumexp logcumsumexp logaddexp cummax kthvalue exp neg baddbmm".split()
)
# Sums of products: nobody asks them for an infinity.
ACCUMULATING = frozenset("mm addmm bmm baddbmm mv dot addmv convolution linear".split())
LOSSES = frozenset(
    "nll_loss nll_loss2d mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy kl_div soft_margin_loss "
    "binary_cross_entropy_with_logits multi_margin_loss multilabel_margin_loss _ctc_loss cross_entropy_loss".split()
)


def plain_name(func: Any) -> str:
    """The name that people use: ``aten._foreach_addcdiv_.Scalar`` is ``addcdiv``, ``aten._softmax`` is ``softmax``."""
    name: str = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
    name = name.removeprefix("_foreach_").removesuffix("_")
    for prefix in ("_safe_", "native_", "cudnn_", "miopen_", "mkldnn_", "_native_", "_linalg_", "_fused_"):
        name = name.removeprefix(prefix)
    name = name.removesuffix("_forward").removesuffix("_copy")
    return {"_softmax": "softmax", "_log_softmax": "log_softmax", "_to": "_to_copy"}.get(name, name)


def node_name(node_op: str) -> str:
    """The operation of an autograd node by its plain name: ``LinalgVectorNorm`` is ``linalg_vector_norm``."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9])(?=[A-Z][a-z])", "_", node_op).lower().lstrip("_")
    for prefix in ("safe_", "native_", "cudnn_", "miopen_", "mkldnn_"):
        name = name.removeprefix(prefix)
    return name


def nonfinite_number(args: Any) -> bool:
    """Whether an infinity or NaN was passed as a Python number, here or in a list."""
    if isinstance(args, float):
        return not math.isfinite(args)
    if isinstance(args, complex):
        return not (math.isfinite(args.real) and math.isfinite(args.imag))
    if isinstance(args, (tuple, list)):
        return any(map(nonfinite_number, args))
    if isinstance(args, dict):
        return any(map(nonfinite_number, args.values()))
    return False


# Write over what was there: the old values are no input.
OVERWRITING = frozenset(
    "copy fill zero normal uniform bernoulli random exponential set resize log_normal cauchy geometric "
    "zeros_like".split()
)
