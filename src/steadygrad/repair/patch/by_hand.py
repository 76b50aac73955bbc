"""What a change means in code, for people who write it into their script themselves."""

from __future__ import annotations

from typing import Any

from steadygrad.repair.patch.values import literal

LONG = 400  # characters of a value
TOLD: dict[str, tuple[str, ...]] = {
    "lr_factor": ("multiply the learning rate by {0}",),
    "momentum": ("momentum, or the first beta: at most {0}",),
    "beta2": ("Adam's betas: (..., {0})",),
    "adam_eps": ("Adam's eps: at least {0}",),
    "weight_decay": ("weight_decay: at most {0}",),
    "warmup_steps": ("let the learning rate rise from 0, in a line, over the first {0} steps",),
    "query_key_scale": ("start the weights of queries and keys smaller: {0}",),
    "lr_cap": ("never let the learning rate rise above {0} times its first value",),
    "lr_floor": ("never let the learning rate fall below {0} times its first value",),
    "lr_decay": ("let the learning rate fall, in a line, to 2 % over the last half of {0} steps",),
    "hold_targets": ("let the target network follow once every {0} steps only",),
    "rewarm_steps": (
        "let the learning rate rise anew over {0} steps where it jumps and after steps left out",
    ),
    "clip_norm": ("before optimizer.step():", "    torch.nn.utils.clip_grad_norm_(model.parameters(), {0})"),
    "clip_value": (
        "before optimizer.step():",
        "    torch.nn.utils.clip_grad_value_(model.parameters(), {0})",
    ),
    "skip_nonfinite": (
        "around optimizer.step():",
        "    if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):",
        "        optimizer.step()",
    ),
    "skip_above": ("leave out steps whose gradient norm is above {0} times the median of the last 50",),
    "gradient_factor": ("run the loss backward as", "    (loss * {0}).backward()"),
    "zero_gradients": ("behind optimizer.step():", "    optimizer.zero_grad()"),
    "clear_after_step": ("behind optimizer.step(), not before it:", "    optimizer.zero_grad()"),
    "train_mode": ("at the start of each training step:", "    model.train()"),
    "pass_gradients": ("take detach(), .data or no_grad out of these lines: {0}",),
    "own_parameters": (
        "build the optimizer behind the last line that changes the model, from all that is trained:",
        "    optimizer = ...(model.parameters(), ...)",
    ),
    "safe_ops": (
        "give the operations at {0} a safe form: an epsilon below a root or a quotient, a clamp in a log",
    ),
    "optimizer": ("build another optimizer: {0}",),
    "reinitialise": ("draw fresh weights before the optimizer is built: {0}",),
    "dead_unit_reset": ("take the mean of units that are negative on whole batches off their biases: {0}",),
    "dormant_reset": (
        "reset = steadygrad.plasticity.DormantReset(model, optimizer, x, ...), and behind optimizer.step():",
        "    reset.step()  # {0}",
    ),
    "continual_backprop": (
        "renewal = steadygrad.plasticity.ContinualBackprop(model, optimizer, x, ...), and behind optimizer.step():",
        "    renewal.step()  # {0}",
    ),
    "shrink_and_perturb": (
        "behind model.load_state_dict(...):",
        "    steadygrad.plasticity.shrink_and_perturb_(model)  # {0}",
    ),
    "standardise_inputs": ("subtract the mean of the inputs and divide by their deviation: {0}",),
    "scale_targets": ("subtract the mean of the targets and divide by their deviation: {0}",),
}


def by_hand(key: str, value: Any) -> list[str]:
    """The lines about one key of a plan."""
    said = literal(float(value)) if type(value) in (int, float) else _said(value)
    return [f"  {line.replace('{0}', said)}" for line in TOLD.get(key, (f"{key}: {{0}}",))]


def _said(value: Any) -> str:
    said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return said if len(said) <= LONG else f"{said[:LONG]} ..."
