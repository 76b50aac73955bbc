"""From a plan and the survey of the untouched run to a diff against the user's script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steadygrad.repair.patch import (
    clearing,
    cuts,
    data,
    layers,
    modes,
    ownership,
    rates,
    safe,
    steps,
    swap,
    units,
    weights,
)
from steadygrad.repair.patch.by_hand import by_hand
from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, Script

Writer = Callable[[Draft, Any], None]

WRITERS: dict[str, Writer] = {
    "reinitialise": weights.reinitialise,
    "orthogonal_recurrent": weights.orthogonal_recurrent,
    "output_scale": weights.output_scale,
    "query_key_scale": weights.query_key_scale,
    "branch_scale": weights.branch_scale,
    "zero_bias": weights.zero_bias,
    "activation": layers.activation,
    "remove_output_activation": layers.remove_output_activation,
    "standardise_inputs": data.standardise_inputs,
    "scale_targets": data.scale_targets,
    "layer_norm": layers.layer_norm,
    "batch_norm": layers.batch_norm,
    "residual_gate": layers.residual_gate,
    "own_parameters": ownership.own_parameters,
    "optimizer": swap.optimizer,
    "lr_cap": rates.lr_cap,
    "lr_floor": rates.lr_floor,
    "lr_factor": rates.lr_factor,
    "warmup_steps": rates.warmup_steps,
    "lr_decay": rates.lr_decay,
    "momentum": rates.momentum,
    "beta2": rates.beta2,
    "adam_eps": rates.adam_eps,
    "weight_decay": rates.weight_decay,
    "skip_nonfinite": steps.steps,
    "skip_above": steps.steps,
    "clip_norm": steps.steps,
    "clip_value": steps.steps,
    "train_mode": modes.train_mode,
    "pass_gradients": cuts.pass_gradients,
    "precision": modes.precision,
    "safe_ops": safe.safe_ops,
    "gradient_factor": steps.gradient_factor,
    "zero_gradients": steps.zero_gradients,
    "clear_after_step": clearing.clear_after_step,
    "weight_clip": steps.weight_clip,
    "bias_clamp": units.bias_clamp,
    "dead_unit_reset": units.dead_unit_reset,
    "dormant_reset": units.dormant_reset,
}
"""What writes each key of a plan, in the order in which they are written. The same function is called once."""

SWAPPED = ("lr_factor", "momentum", "beta2", "adam_eps")
"""Written with the new optimizer, or without a meaning for it."""


@dataclass(frozen=True)
class Patch:
    """A change of the user's script."""

    diff: str  # unified, for ``patch -p1``; "" if the plan is empty
    source: str  # the script with the change
    notes: tuple[str, ...] = ()  # for people


def write_patch(source: str, shown_path: str, plan: Mapping[str, Any], survey: Mapping[str, Any]) -> Patch:
    """Write a plan into a script.

    Args:
        source: the script's text with its own line ends (``newline=""`` when it is read).
        shown_path: the script as people are shown it, relative to where the patch is applied.
        plan: what is changed, see :data:`steadygrad.repair.effects.EFFECTS`.
        survey: of the untouched run; its "sites" say where.

    Raises:
        NoPatch: some of it cannot be written; the message has the lines to add by hand, for all of the plan.
    """
    try:
        draft = Draft(Script(source, shown_path), survey, plan)
        unknown = [key for key in plan if key not in WRITERS]
        if unknown:
            raise NoPatch(f"{unknown[0]} is not written into scripts")
        if "optimizer" in plan and "weight_decay" in plan:
            raise NoPatch("another optimizer and another weight decay are not written together")
        chosen = [key for key in WRITERS if key in plan and not ("optimizer" in plan and key in SWAPPED)]
        for write in dict.fromkeys(WRITERS[key] for key in chosen):
            write(draft, plan[next(key for key in chosen if WRITERS[key] is write)])
        changed = draft.source()
        if plan and changed == source:
            raise NoPatch("the script would stay as it is")
    except NoPatch as error:
        lines = "\n".join(line for key in plan for line in by_hand(key, plan[key]))
        raise NoPatch(f"{error}. To be changed by hand:\n{lines}") from None
    return Patch(draft.diff(changed), changed, tuple(draft.notes))
