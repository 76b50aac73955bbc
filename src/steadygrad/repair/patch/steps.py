"""Edits around the optimizer's step and the backward pass."""

from __future__ import annotations

import ast
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, last_name
from steadygrad.repair.patch.targets import (
    Stepping,
    backwards,
    built,
    losses_before,
    steppings,
)
from steadygrad.repair.patch.values import ATOMS, literal

SOUND = '''
def is_sound(optimizer, *losses):
    """Whether a step can be taken: no loss and no gradient is NaN or infinite. If not, the gradients become 0."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = [g.coalesce().values() if g.is_sparse else g for g in grads]
    sound = all(bool(torch.isfinite(v.detach()).all()) for v in [*losses, *values])
    sound = sound and is_usual(optimizer, values)
    for grad in [] if sound else grads:
        grad.zero_()
    for buffer, kept in getattr(optimizer, "kept_buffers", ()):
        kept.copy_(buffer) if sound else buffer.copy_(kept)
    return sound
'''
NO_BOUND = "    sound = sound and is_usual(optimizer, values)\n"
USUAL = '''
def is_usual(optimizer, grads, most={times}):
    """Whether the gradient norm is no outlier against the median of the last 50 steps; three in a row are none."""
    first = {{"norms": [], "steps": 0, "skipped": 0, "row": 0, "over": False}}
    seen = optimizer.__dict__.setdefault("norms_seen", first)
    norm = sum(float(g.detach().double().square().sum()) for g in grads) ** 0.5
    recent = sorted(seen["norms"][-50:])
    median = (recent[(len(recent) - 1) // 2] + recent[len(recent) // 2]) / 2 if len(recent) >= 10 else 0.0
    seen["steps"] += 1
    if seen["row"] < 3 and not seen["over"] and norm > most * median > 0:
        seen["skipped"] += 1
        seen["row"] += 1
        seen["over"] = seen["skipped"] > max(4, 0.01 * seen["steps"])  # so many are no outliers
        if not seen["over"]:
            return False
    seen["row"] = 0
    seen["norms"] = [*seen["norms"][-49:], norm]
    return True
'''
BUFFERS = '''
def with_kept_buffers(optimizer, *models):
    """Keep what the models' buffers were at the last step that was taken: statistics of a bad batch are no good."""
    optimizer.kept_buffers = [(b, b.detach().clone()) for model in models for b in model.buffers()]
    return optimizer
'''
CLIP = 'torch.nn.utils.{rule}([p for group in {optimizer}.param_groups for p in group["params"]], {bound})'
CLAMP = '''
def with_clamped_weights(optimizer, most):
    """After each step every weight is within [-most, most]."""

    @torch.no_grad()
    def clamp(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.clamp_(-most, most)

    optimizer.register_step_post_hook(clamp)
    return optimizer
'''


def steps(draft: Draft, value: Any) -> None:
    """What the whole plan wants of the step: left out where it is not sound, clipped where it is taken."""
    plan, script = draft.plan, draft.script
    skips = "skip_nonfinite" in plan or "skip_above" in plan
    if skips:
        _add_guard(draft)
    unscaled = any(last_name(c.func) == "unscale_" for c in script.nodes(ast.Call))
    for stepping in steppings(draft):
        first = (
            [f"{stepping.scaler}.unscale_({stepping.optimizer})"] if stepping.scaler and not unscaled else []
        )
        clips = [
            CLIP.format(rule=rule, optimizer=stepping.optimizer, bound=literal(float(plan[key])))
            for key, rule in (("clip_norm", "clip_grad_norm_"), ("clip_value", "clip_grad_value_"))
            if key in plan
        ]
        if stepping.closure:
            if skips:
                raise NoPatch(
                    f"line {stepping.call.lineno} steps with a closure, which makes the gradients itself"
                )
            _clip_in_closure(draft, clips, stepping)
        elif skips:
            if first:
                draft.before(stepping.stmt, *first)
            losses = losses_before(draft, stepping)
            if not losses:
                draft.note("at the step the loss has no name: only gradients are looked at")
            condition = f"is_sound({', '.join([stepping.optimizer, *losses])})"
            draft.step(stepping.stmt, stepping.call, f"if {condition}:", clips)
        else:
            draft.step(stepping.stmt, stepping.call, "", [*first, *clips])
    if any(key.startswith("clip_") for key in plan):
        draft.needs.add("torch")


def _add_guard(draft: Draft) -> None:
    above = draft.plan.get("skip_above")
    draft.helper(SOUND.replace(NO_BOUND, "") if above is None else SOUND)
    if above is not None:
        draft.helper(USUAL.format(times=literal(float(above))))
    models = [m for m in draft.survey.get("sites", {}).get("models", ()) if m["buffers"]]
    if not models:
        return
    draft.helper(BUFFERS)
    for site in built(draft):
        here = [
            m["name"]
            for m in models
            if m["name"] and draft.script.call(m["place"], lambda c: True) is site.call
        ]
        if not here:
            raise NoPatch("the model has buffers to keep, and no name where the optimizer is built")
        draft.wrap(site.call, "with_kept_buffers(", f", {', '.join(here)})")


def _clip_in_closure(draft: Draft, clips: list[str], stepping: Stepping) -> None:
    """Behind the backward pass of the closure; a closure is called once by most optimizers."""
    if stepping.call.args and isinstance(stepping.call.args[0], ast.Name):
        name = stepping.call.args[0].id
        inside = [
            call for call, _ in backwards(draft) if getattr(draft.script.scope(call), "name", None) == name
        ]
        if len(inside) == 1:
            draft.after(draft.script.statement(inside[0]), *clips)
            return
    raise NoPatch(f"line {stepping.call.lineno} steps with a closure that cannot be found")


def zero_gradients(draft: Draft, value: Any) -> None:
    """Cleared behind each step; in a closure before its backward pass."""
    every = steppings(draft)
    for stepping in every:
        scope = draft.script.scope(stepping.call)
        if stepping.closure:
            for call, _ in backwards(draft):
                draft.before(draft.script.statement(call), f"{stepping.optimizer}.zero_grad()")
            continue
        names = dict.fromkeys(s.optimizer for s in every if draft.script.scope(s.call) is scope)
        draft.after(stepping.stmt, *(f"{name}.zero_grad()" for name in names))


def gradient_factor(draft: Draft, value: Any) -> None:
    """The loss times a factor where it runs backward, so that what is printed of it stays the user's."""
    factor = literal(float(value))
    for _, loss in backwards(draft):
        text = draft.script.text(loss)
        product = f"{text if isinstance(loss, ATOMS) else f'({text})'} * {factor}"
        bare = isinstance(draft.script.parent(loss), ast.Attribute) and isinstance(loss, ATOMS)
        draft.replace(loss, f"({product})" if bare else product)


def weight_clip(draft: Draft, value: Any) -> None:
    """Weights clamped after the step."""
    draft.helper(CLAMP)
    every = draft.survey.get("sites", {}).get("optimizers", ())
    for site in built(draft):
        if "optimizer" in value and site.facts is not every[value["optimizer"]]:
            continue
        draft.wrap(site.call, "with_clamped_weights(", f", {literal(float(value['max']))})")
