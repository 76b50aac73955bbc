"""Edits of the scale of what a model is given and what it puts out: hooks with the numbers of the plan."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch
from steadygrad.repair.patch.targets import model_at
from steadygrad.repair.patch.values import literal
from steadygrad.repair.patch.weights import quoted

MOST = 1024  # numbers that are written into a script
SHAPED = '''
def shaped(values, like, axis):
    """Numbers of features as a tensor that goes with another along an axis; 0: one for each position of a sample."""
    shape = [1] * like.ndim
    shape[axis] = -1
    if axis == 0:
        shape = [1, *like.shape[1:]]
    return torch.tensor(values, dtype=torch.float32).to(like).view(shape)
'''
INPUTS = '''
def standardise_inputs(module, mean, std, axis):
    """This layer is given (x - mean) / std, whoever calls it."""

    def scale(module, args):
        x = args[0]
        if not x.is_floating_point():
            return None
        scaled = (x - shaped(mean, x, axis)) / shaped(std, x, axis)
        return tuple(scaled if arg is x else arg for arg in args)

    module.register_forward_pre_hook(scale)
'''
OUTPUTS = '''
def scale_outputs(module, mean, std, axis, power):
    """This layer puts out mean + std * o, and gets gradients as if its targets were (y - mean) / std."""

    def scale(module, args, output):
        divisor = shaped(std, output, axis) ** power
        if output.requires_grad:
            output.register_hook(lambda grad: grad / divisor)
        return shaped(mean, output, axis) + shaped(std, output, axis) * output

    module.register_forward_hook(scale)
'''


def standardise_inputs(draft: Draft, value: Any) -> None:
    """Inputs at the layers that are given them."""
    if not isinstance(value, Mapping):
        raise NoPatch("the means and deviations of the inputs are not known")
    _hooked(draft, value, "standardise_inputs", INPUTS, lambda spec: "")


def scale_targets(draft: Draft, value: Mapping[str, Any]) -> None:
    """Outputs at the layers that make predictions."""
    _hooked(draft, value, "scale_outputs", OUTPUTS, lambda spec: f", power={spec.get('power', 2)}")


def _hooked(draft: Draft, value: Mapping[str, Any], function: str, helper: str, more: Any) -> None:
    draft.helper(SHAPED)
    draft.helper(helper)
    for path, spec in value["modules"].items():
        model, inner, stmt = model_at(draft, path)
        module = f"{model}.get_submodule({quoted(inner)})"
        mean, std = (_numbers(spec[name]) for name in ("mean", "std"))
        axis = int(spec.get("axis", -1))
        line = f"{function}({module}, {mean}, {std}, axis={axis}{more(spec)})"
        if len(line) > 100:
            line = "\n    ".join(textwrap.wrap(line, 100, break_long_words=False, break_on_hyphens=False))
        draft.before(stmt, line)


def _numbers(values: Any) -> str:
    if not isinstance(values, (list, tuple)):
        return literal(float(values))
    if len(values) > MOST:
        raise NoPatch(f"{len(values)} means and deviations are too many to be written into a script")
    return f"[{', '.join(literal(float(v)) for v in values)}]"
