"""Edits of what a model's layers do: hooks, and other activations."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from typing import Any

from steadygrad.repair.effects.activation import CALLED
from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch, keyword, last_name
from steadygrad.repair.patch.values import literal
from steadygrad.repair.patch.weights import names, one_model, quoted

LAYER_NORM = '''
def add_layer_norms(model, paths):
    """Normalise what these layers put out: the units of a linear layer, the image of a convolution."""

    def normalise(module, args, output):
        if isinstance(module, torch.nn.Linear):
            return torch.nn.functional.layer_norm(output, output.shape[-1:])
        if output.dim() == module.weight.dim() - 1:  # without a batch
            return torch.nn.functional.group_norm(output.unsqueeze(0), 1).squeeze(0)
        return torch.nn.functional.group_norm(output, 1)

    for path in paths:
        model.get_submodule(path).register_forward_hook(normalise)
'''
BATCH_NORM = '''
def add_batch_norms(model, paths, preserve):
    """Normalise each unit of these layers over the batch; ``preserve``: at the scale that it has in the first batch."""

    def normalise(module, args, output):
        linear = isinstance(module, torch.nn.Linear)
        whole = not linear and output.dim() == module.weight.dim()
        x = output.reshape(-1, output.shape[-1]) if linear else output if whole else output.unsqueeze(0)
        several = x.numel() > x.shape[1]
        if preserve and module.kept_var is None and several:
            axes = [0, *range(2, x.dim())]
            module.kept_var, module.kept_mean = torch.var_mean(x.detach().float(), dim=axes, correction=0)
            module.running_mean.copy_(module.kept_mean)
            module.running_var.copy_(module.kept_var)
        training = module.training and several
        y = torch.nn.functional.batch_norm(x, module.running_mean, module.running_var, training=training)
        if preserve and module.kept_var is not None:
            shape = (1, -1, *[1] * (x.dim() - 2))
            y = y * (module.kept_var + 1e-5).sqrt().reshape(shape).to(y) + module.kept_mean.reshape(shape).to(y)
        return y.reshape(output.shape)

    for path in paths:
        module = model.get_submodule(path)
        like = module.weight.detach()
        transposed = getattr(module, "transposed", False)
        units = like.shape[1] * module.groups if transposed else like.shape[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        module.register_buffer("running_mean", torch.zeros(units, device=like.device, dtype=dtype), persistent=False)
        module.register_buffer("running_var", torch.ones(units, device=like.device, dtype=dtype), persistent=False)
        module.register_buffer("kept_mean", None, persistent=False)
        module.register_buffer("kept_var", None, persistent=False)
        module.register_forward_hook(normalise)
'''
GATES = '''
def add_residual_gates(model, paths, start):
    """A learned factor behind each of these layers, the last ones of residual branches."""

    def multiply(module, args, output):
        if isinstance(output, tuple):
            return (output[0] * module.residual_gate, *output[1:])
        return output * module.residual_gate

    for path in paths:
        module = model.get_submodule(path)
        like = next(p for p in module.parameters() if p.is_floating_point())
        gate = torch.full((), start, dtype=like.dtype, device=like.device)
        module.register_parameter("residual_gate", torch.nn.Parameter(gate))
        module.register_forward_hook(multiply)
'''
FUNCTIONS = {
    "LeakyReLU": "torch.nn.functional.leaky_relu",
    "GELU": "torch.nn.functional.gelu",
    "SELU": "torch.nn.functional.selu",
    "SiLU": "torch.nn.functional.silu",
    "ReLU": "torch.nn.functional.relu",
    "Tanh": "torch.tanh",
    "Identity": "",
}


def layer_norm(draft: Draft, value: Mapping[str, Any]) -> None:
    """A norm without parameters behind layers."""
    model, paths, stmt = one_model(draft, value["modules"])
    draft.helper(LAYER_NORM)
    draft.before(stmt, f"add_layer_norms({model}, {names(paths)})")


def batch_norm(draft: Draft, value: Mapping[str, Any]) -> None:
    """The same over the batch."""
    model, paths, stmt = one_model(draft, value["modules"])
    draft.helper(BATCH_NORM)
    draft.before(
        stmt, f"add_batch_norms({model}, {names(paths)}, preserve={bool(value.get('preserve', False))})"
    )


def residual_gate(draft: Draft, value: Mapping[str, Any]) -> None:
    """Factors behind branches, which the optimizer built below trains with the rest."""
    model, paths, stmt = one_model(draft, value["modules"])
    draft.helper(GATES)
    draft.before(
        stmt, f"add_residual_gates({model}, {names(paths)}, start={literal(float(value.get('start', 1.0)))})"
    )


def activation(draft: Draft, value: Mapping[str, Any]) -> None:
    """Another function in the place of an activation, module or call."""
    _activate(draft, value["to"], value.get("modules", ()), value.get("calls", ()))


def remove_output_activation(draft: Draft, value: Mapping[str, Any]) -> None:
    """None at the output."""
    _activate(draft, "Identity", value.get("modules", ()), value.get("calls", ()))


def _activate(draft: Draft, to: str, paths: Sequence[str], calls: Sequence[Mapping[str, Any]]) -> None:
    draft.needs.add("torch")
    if paths:
        model, inner, stmt = one_model(draft, paths)
        place = f"{model}.get_submodule({quoted(inner[0])})"
        change = f"{place}.forward = torch.nn.{to}().forward"
        if len(inner) > 1:
            change = f"for path in {names(inner)}:\n    {model}.get_submodule(path).forward = torch.nn.{to}().forward"
        draft.before(stmt, change)
    for site in calls:
        if os.path.basename(site["file"]) != os.path.basename(draft.script.path):
            raise NoPatch(f"the activation is called in {site['file']}, line {site['line']}")
        found = [c for c in draft.script.nodes(ast.Call) if c.lineno <= site["line"] <= (c.end_lineno or 0)]
        found = [c for c in found if CALLED.get(last_name(c.func)) == site["kind"]]
        if not found:
            raise NoPatch(f"line {site['line']} calls no {site['kind']} by its name")
        for call in found:
            _change_call(draft, call, FUNCTIONS[to])


def _change_call(draft: Draft, call: ast.Call, function: str) -> None:
    """Only the name and what is not the input go: the input may hold a call that changes as well."""
    name, script = last_name(call.func), draft.script
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    method = owner is not None and last_name(owner) not in ("torch", "F", "functional", "special", "nn")
    x = owner if method else call.args[0] if call.args else keyword(call, "input")
    in_place = name.endswith("_") or keyword(call, "inplace") is not None
    if x is None or in_place or isinstance(x, ast.Starred):
        raise NoPatch(f"line {call.lineno} calls {name} in a way that cannot be changed")
    draft.cut(script.start(call), script.start(x), f"{function}(")
    draft.cut(script.end(x), script.end(call), ")")
