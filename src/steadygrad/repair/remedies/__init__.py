"""The remedies that a failing run gives reason to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from steadygrad.repair.case import Case
from steadygrad.repair.remedies.activations import other_activation, remove_output_activation, revive_units
from steadygrad.repair.remedies.attention import bounded_attention
from steadygrad.repair.remedies.clip import adaptive_clip, clip, update_clip, weight_clip
from steadygrad.repair.remedies.cuts import pass_gradients
from steadygrad.repair.remedies.hold import hold_targets
from steadygrad.repair.remedies.initialisation import recurrent_weights, reinitialise, small_output, zero_bias
from steadygrad.repair.remedies.loop import clear_after_step, train_mode, zero_gradients
from steadygrad.repair.remedies.loss import loss_calls
from steadygrad.repair.remedies.loss_factor import mean_loss
from steadygrad.repair.remedies.norms import insert_norms
from steadygrad.repair.remedies.operations import links, safe_operations
from steadygrad.repair.remedies.optimizer import (
    adam_eps,
    momentum,
    other_optimizer,
    second_moment,
    weight_decay,
)
from steadygrad.repair.remedies.ownership import own_parameters
from steadygrad.repair.remedies.plasticity import renew_units, shrink_and_perturb
from steadygrad.repair.remedies.precision import precision
from steadygrad.repair.remedies.rate import (
    capped_rate,
    decay,
    floored_rate,
    higher_rate,
    lower_rate,
    rewarm,
    warmup,
)
from steadygrad.repair.remedies.residual import small_branches
from steadygrad.repair.remedies.scale import scaled_data
from steadygrad.repair.remedies.skip import skip
from steadygrad.repair.remedy import Remedy

Builder = Callable[[Case], Iterator[Remedy]]

BUILDERS: tuple[Builder, ...] = (
    other_activation,
    remove_output_activation,
    revive_units,
    renew_units,
    shrink_and_perturb,
    bounded_attention,
    reinitialise,
    small_output,
    zero_bias,
    recurrent_weights,
    insert_norms,
    small_branches,
    clip,
    adaptive_clip,
    update_clip,
    weight_clip,
    hold_targets,
    zero_gradients,
    clear_after_step,
    train_mode,
    pass_gradients,
    own_parameters,
    mean_loss,
    momentum,
    second_moment,
    adam_eps,
    weight_decay,
    other_optimizer,
    lower_rate,
    higher_rate,
    warmup,
    rewarm,
    capped_rate,
    floored_rate,
    decay,
    skip,
    loss_calls,
    safe_operations,
    links,
    precision,
    scaled_data,
)


def remedies(case: Case) -> list[Remedy]:
    """All that could be tried on this run, those of one plan once."""
    found: dict[str, Remedy] = {}
    for build in BUILDERS:
        for remedy in build(case):
            found.setdefault(repr(sorted(remedy.plan.items())), remedy)
    return list(found.values())
