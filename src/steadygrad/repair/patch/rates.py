"""Edits of the optimizer's numbers: where it is built, or at each step where a scheduler or the user sets them."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, argument, keyword, last_name
from steadygrad.repair.patch.targets import Built, built
from steadygrad.repair.patch.values import add_keyword, change, definition, literal

CYCLES = ("OneCycleLR", "CyclicLR")  # they set rates, and momentum, whatever the optimizer was given

AT_STEPS = '''
def changed_at_steps(optimizer, change):
    """Change each parameter group for its step alone: schedulers go on from the values of before."""
    kept, taken = [], 0

    def before(optimizer, args, kwargs):
        nonlocal taken
        taken += 1
        for group in optimizer.param_groups:
            own = dict(group)
            change(group, taken)
            kept.extend((group, key, value) for key, value in own.items() if group[key] is not value)

    def after(optimizer, args, kwargs):
        while kept:
            group, key, value = kept.pop()
            group[key] = value

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
'''


def at_steps(draft: Draft, site: Built, change: str) -> None:
    """Put a change of the groups in force at each step. ``change``: an expression of ``group`` and ``step``, from 1."""
    draft.helper(AT_STEPS)
    draft.wrap(site.call, "changed_at_steps(", f", lambda group, step: {change})")


def lr_factor(draft: Draft, value: Any) -> None:
    """The rate times a factor, at its source."""
    factor = float(value)
    form = f"{{}} * {literal(factor)}"
    for site in built(draft):
        rates = _rates(draft, site)
        if rates is None:
            at_steps(draft, site, f'group.update(lr=group["lr"] * {literal(factor)})')
            draft.note(
                "the rate is changed by the helper at each step: what the script prints of it is what it was"
            )
            continue
        default = _default(site, "lr") if not rates and not site.schedules(*CYCLES) else None
        if default is not None:
            add_keyword(draft, site.call, f"lr={literal(default * factor)}")
        for rate in rates:
            change(draft, rate, lambda x: x * factor, form)


def _rates(draft: Draft, site: Built) -> list[ast.expr] | None:
    """The expressions that set the rates of an optimizer; None if it is not certain that these do it alone."""
    facts, script = site.facts, draft.script
    bounds = [
        b for s in facts["schedulers"] for name in ("eta_min", "min_lrs") for b in _numbers(s.get(name, 0))
    ]
    if facts["lr_set_by_hand"] or any(bounds):
        return None
    if site.schedules(*CYCLES):
        calls = [c for c in script.nodes(ast.Call) if last_name(c.func) == "OneCycleLR"]
        most = argument(calls[0], "max_lr", 1) if len(calls) == 1 else None
        alone = (
            len(facts["schedulers"]) == 1
            and most is not None
            and not isinstance(most, (ast.List, ast.ListComp))
        )
        return [most] if alone and most is not None else None
    if any(k.arg is None for k in site.call.keywords) or any(
        isinstance(a, ast.Starred) for a in site.call.args
    ):
        return None
    groups = _group_entries(draft, site, "lr")
    if groups is None:
        return None
    own = argument(site.call, "lr", 1 if facts["torch"] else None)
    if own is None and _default(site, "lr") is None:
        return None
    return groups if own is None else [own, *groups]


def _numbers(value: Any) -> list[float]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _group_entries(draft: Draft, site: Built, key: str) -> list[ast.expr] | None:
    """What parameter groups that are written out have under a key; None if they are made out of sight."""
    params = argument(site.call, "params", 0)
    if params is None or site.facts["groups"] > 1 and not isinstance(params, ast.List):
        return None
    if not isinstance(params, ast.List):
        return []
    if not all(isinstance(e, ast.Dict) and None not in e.keys for e in params.elts):
        return [] if site.facts["groups"] == 1 else None
    if len(params.elts) != site.facts["groups"]:
        return None
    entries = [
        (k, v) for e in params.elts if isinstance(e, ast.Dict) for k, v in zip(e.keys, e.values, strict=True)
    ]
    return [v for k, v in entries if isinstance(k, ast.Constant) and k.value == key]


def _default(site: Built, name: str) -> Any:
    """What torch's class takes if the user gives nothing."""
    kind = getattr(torch.optim, site.facts["class"], None) if site.facts["torch"] else None
    parameter = inspect.signature(kind).parameters.get(name) if kind is not None else None
    known = parameter is not None and isinstance(parameter.default, (int, float, tuple))
    return parameter.default if known and parameter is not None else None


def _plain(draft: Draft, site: Built, key: str) -> bool:
    """Whether a number of all groups is given by one argument of a class of torch's, or left out."""
    spread = any(k.arg is None for k in site.call.keywords) or len(site.call.args) > 2
    return bool(site.facts["torch"]) and not spread and _group_entries(draft, site, key) == []


def _number(draft: Draft, key: str, least: bool, value: float) -> None:
    """Bring a number of the groups to at least, or at most, a value."""
    bound, name = (max, "max") if least else (min, "min")
    changed = False
    for site in built(draft):
        cycled = key == "momentum" and site.schedules(*CYCLES)
        own = keyword(site.call, key)
        default = _default(site, key)
        if _plain(draft, site, key) and not cycled:
            if own is not None:
                changed |= change(draft, own, lambda x: bound(x, value), f"{name}({{}}, {literal(value)})")
            elif default is not None and default and bound(default, value) != default:
                add_keyword(draft, site.call, f"{key}={literal(value)}")
                changed = True
        elif own is not None or cycled or not site.facts["torch"]:
            test = f'group.get("{key}")' if key == "momentum" else f'"{key}" in group'
            at_steps(draft, site, f'{test} and group.update({key}={name}(group["{key}"], {literal(value)}))')
            changed = True
    if not changed and key != "momentum":
        raise NoPatch(f"no optimizer here is given another {key}")


def weight_decay(draft: Draft, value: Any) -> None:
    """Weight decay at most so large."""
    _number(draft, "weight_decay", False, float(value))


def adam_eps(draft: Draft, value: Any) -> None:
    """eps at least so large."""
    _number(draft, "eps", True, float(value))


def momentum(draft: Draft, value: Any) -> None:
    """Momentum, or the first beta, at most so large."""
    _number(draft, "momentum", False, float(value))
    _betas(draft)


def beta2(draft: Draft, value: Any) -> None:
    """The second beta; beside a momentum it is written with that."""
    if "momentum" not in draft.plan:
        _betas(draft)


def _betas(draft: Draft) -> None:
    """Both betas, as the whole plan wants them."""
    first, second = draft.plan.get("momentum"), draft.plan.get("beta2")
    for site in built(draft):
        own, default = keyword(site.call, "betas"), _default(site, "betas")
        if default is None and own is None and site.facts["torch"]:
            continue
        written = own.elts if isinstance(own, (ast.Tuple, ast.List)) and len(own.elts) == 2 else None
        cycled = first is not None and site.schedules(*CYCLES)
        if cycled or not _plain(draft, site, "betas") or own is not None and written is None:
            a = 'group["betas"][0]' if first is None else f'min(group["betas"][0], {literal(first)})'
            b = 'group["betas"][1]' if second is None else literal(second)
            at_steps(draft, site, f'"betas" in group and group.update(betas=({a}, {b}))')
        elif written is not None:
            if first is not None:
                change(draft, written[0], lambda x: min(x, first), f"min({{}}, {literal(first)})")
            if second is not None:
                draft.replace(definition(draft, written[1]) or written[1], literal(second))
        else:
            a, b = default[:2]
            pair = (a if first is None else min(a, first), b if second is None else second)
            if pair != tuple(default[:2]):
                add_keyword(draft, site.call, f"betas=({literal(pair[0])}, {literal(pair[1])})")


def warmup_steps(draft: Draft, value: Any) -> None:
    """The rate rises from 0."""
    for site in built(draft):
        at_steps(draft, site, f'group.update(lr=group["lr"] * min(1.0, step / {_whole(value)}))')


def lr_decay(draft: Draft, value: Any) -> None:
    """The rate falls over the last half."""
    if any(key.startswith("skip_") for key in draft.plan):
        raise NoPatch("with steps that are left out the decay cannot count the steps")
    for site in built(draft):
        fall = f"min(1.0, max(0.02, 2 * (1 - (step - 1) / {_whole(value)})))"
        at_steps(draft, site, f'group.update(lr=group["lr"] * {fall})')


def lr_cap(draft: Draft, value: Any) -> None:
    """The rate at most so many times the first."""
    _bounded(draft, value, "min")


def lr_floor(draft: Draft, value: Any) -> None:
    """The rate at least so many times the first."""
    _bounded(draft, value, "max")


def _bounded(draft: Draft, value: Any, nearer: str) -> None:
    for site in built(draft):
        draft.helper(AT_STEPS)
        bound = f'{literal(float(value))} * first.setdefault(id(group), group["lr"])'
        change_of = f'group.update(lr={nearer}(group["lr"], {bound}))'
        draft.wrap(site.call, "changed_at_steps(", f", lambda group, step, first={{}}: {change_of})")


def _whole(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else literal(float(value))
