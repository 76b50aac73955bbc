"""Where a gradient that is not finite came from, as far as the ranks can tell each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steadygrad.integrations.ranks.facts import Facts, Flag, Merged
from steadygrad.integrations.ranks.group import named


def is_finite(merged: Merged) -> bool:
    """Whether the gradient of all ranks is."""
    return math.isfinite(merged.grad_norm) and math.isfinite(merged.clipped_grad_norm)


def origin_unknown(merged: Merged) -> bool:
    """Whether the gradient is not finite on any rank, and nothing before it was bad on any."""
    return (
        not is_finite(merged)
        and merged.all(Flag.BAD_GRADIENT)
        and not merged.any(Flag.BAD_OWN)
        and all(math.isfinite(facts.loss) for facts in merged.ranks)
    )


def whose(merged: Merged, ranks: Sequence[int]) -> str:
    """The rank, and the sample where it is known, that a gradient which is not finite came from; "" if it is finite.

    What comes first in a step tells: a loss before the gradients, a rank's own gradients before the reduced ones.

    Args:
        merged: what all ranks say of the step.
        ranks: their numbers in the world.
    """
    if is_finite(merged):
        return ""
    overflow = [ranks[i] for i in merged.those(Flag.OVERFLOW)]
    if overflow:
        return f"the GradScaler of {named(overflow)} has found an overflow"
    for sign in (_loss, _own_gradient):
        for rank, facts in zip(ranks, merged.ranks, strict=True):
            text = sign(rank, facts)
            if text:
                return text + (f", sample {facts.sample} of its batch" if facts.sample >= 0 else "")
    bad = [ranks[i] for i in merged.those(Flag.BAD_GRADIENT)]
    if len(bad) < len(ranks):
        return f"on {named(bad)} alone, after the reduction"
    return "on all ranks, and on none before the reduction"


def _loss(rank: int, facts: Facts) -> str:
    bad = Flag.SAW_LOSS in facts.flags and not math.isfinite(facts.loss)
    return f"the loss of rank {rank} is {facts.loss:g}" if bad else ""


def _own_gradient(rank: int, facts: Facts) -> str:
    return f"made by rank {rank}, before the reduction" if Flag.BAD_OWN in facts.flags else ""
