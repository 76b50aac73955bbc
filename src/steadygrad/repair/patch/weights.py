"""Edits of a model's first weights: lines before the statement that builds its optimizer."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch
from steadygrad.repair.patch.targets import model_at
from steadygrad.repair.patch.values import literal

WRITE = '''
@torch.no_grad()
def write_(module, name, values):
    """Give a parameter new values, through its parametrisation if it has one."""
    if name in getattr(module, "parametrizations", {}):
        setattr(module, name, values)
    else:
        getattr(module, name).copy_(values)
'''
DRAW = '''
def draw_weights_(model, gains, seed):
    """Fresh weights, {what}; biases 0. The script's own random numbers stay."""
    generator, written = torch.Generator().manual_seed(seed), set()
    for path, gain in gains.items():
        module = model.get_submodule(path)
        if id(module.weight) in written:
            continue
        fresh = torch.empty(module.weight.shape)
        {draw}
        write_(module, "weight", fresh.to(module.weight))
        if module.bias is not None:
            write_(module, "bias", torch.zeros_like(module.bias))
        written.add(id(module.weight))
'''
FANS = '''
def fans(module):
    """How many numbers go into a unit of a layer, and how many units each number goes to."""
    shape, positions = module.weight.shape, module.weight[0, 0].numel()
    fans = shape[1] * positions, shape[0] * positions // getattr(module, "groups", 1)
    return fans[::-1] if getattr(module, "transposed", False) else fans
'''
SCHEMES = {
    "he": (
        "normal with deviation gain / sqrt(fan_in)",
        "fresh.normal_(0, gain / fans(module)[0] ** 0.5, generator=generator)",
    ),
    "xavier": (
        "uniform with deviation gain * sqrt(2 / (fan_in + fan_out))",
        "bound = gain * (6 / sum(fans(module))) ** 0.5\n        fresh.uniform_(-bound, bound, generator=generator)",
    ),
    "orthogonal": ("orthogonal", "torch.nn.init.orthogonal_(fresh, gain, generator=generator)"),
}
DIVIDE = '''
def unit_variance_at_first_(model, paths):
    """In the first pass forward each of these layers is brought to variance 1, and its units to mean 0."""
    weights = [p for module in model.modules() for p in module._parameters.values()]

    def add(module):
        drawn = float(module.weight.detach().norm())

        def divide(module, args, kwargs, output):
            units = output.detach().double()
            axis = -1 if isinstance(module, torch.nn.Linear) else output.dim() - 1 - len(module.kernel_size)
            units = units.movedim(axis, 0).flatten(1)
            mean = units.mean(1)
            centres = module.bias is not None and units.shape[1] >= 8
            deviation = float((units - mean[:, None] if centres else units).std(correction=0))
            shrunk = float(module.weight.detach().norm()) / drawn
            if not 0 < deviation < float("inf") or not 0 < shrunk < float("inf"):
                return None
            factor = shrunk / deviation
            write_(module, "weight", module.weight * factor)
            if centres:
                write_(module, "bias", (module.bias - factor * mean).to(module.bias))
            handle.remove()
            return module.forward(*args, **kwargs)

        handle = module.register_forward_hook(divide, with_kwargs=True)

    for path in paths:
        module = model.get_submodule(path)
        if sum(p is module.weight for p in weights) < 2:
            add(module)
'''
QUERIES = '''
@torch.no_grad()
def scale_queries_and_keys_(model, paths, fused, factor):
    """Queries and keys start smaller; of a layer that makes all three the values' third stays."""
    for path in paths:
        for name in ("weight", "in_proj_weight"):
            weight = getattr(model.get_submodule(path), name, None)
            if isinstance(weight, torch.Tensor):
                rows = torch.full((len(weight), *[1] * (weight.ndim - 1)), factor).to(weight)
                if path in fused:
                    rows[2 * len(weight) // 3 :] = 1.0
                weight.mul_(rows)
'''
SCALE = '''
def scale_weights_(model, paths, names, factor):
    """Multiply parameters of these layers, each once."""
    done = set()
    for path in paths:
        for name in names:
            module = model.get_submodule(path)
            parameter = getattr(module, name, None)
            if parameter is not None and id(parameter) not in done:
                write_(module, name, parameter * factor)
                done.add(id(parameter))
'''
RECURRENT = '''
@torch.no_grad()
def draw_recurrent_weights_(model, names, gain, seed):
    """Orthogonal hidden-to-hidden weights, gate by gate. The script's own random numbers stay."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        weight = model.get_parameter(name)
        for block in weight.data.chunk(weight.shape[0] // weight.shape[1]):
            fresh = torch.nn.init.orthogonal_(torch.empty(block.shape), gain, generator=generator)
            block.copy_(fresh)
'''


def one_model(draft: Draft, paths: Iterable[str]) -> tuple[str, list[str], ast.stmt]:
    """The model of these paths, the paths in it, and where lines about it go.

    Raises:
        NoPatch: they are in several models, or it has no name where its optimizer is built.
    """
    found = [model_at(draft, path) for path in paths]
    if len({(name, stmt) for name, _, stmt in found}) != 1:
        raise NoPatch("the layers are in several models")
    return found[0][0], [path for _, path, _ in found], found[0][2]


def names(paths: Sequence[str]) -> str:
    return f"({', '.join(quoted(p) for p in paths)}{',' if len(paths) == 1 else ''})"


def quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text and "\\" not in text else repr(text)


def reinitialise(draft: Draft, value: Mapping[str, Any]) -> None:
    """Fresh weights, from a generator of their own: those of the arm."""
    model, paths, stmt = one_model(draft, value["modules"])
    scheme = value["scheme"]
    what, draw = SCHEMES["orthogonal" if scheme == "lsuv" else scheme]
    draft.helper(WRITE)
    if "fans(" in draw:
        draft.helper(FANS)
    draft.helper(DRAW.format(what=what, draw=draw))
    gains = zip(paths, value["modules"].values(), strict=True)
    given = ", ".join(f"{quoted(path)}: {literal(float(gain))}" for path, gain in gains)
    lines = [f"draw_weights_({model}, {{{given}}}, seed={int(value.get('seed', 0))})"]
    if scheme == "lsuv":
        draft.helper(DIVIDE)
        lines.append(f"unit_variance_at_first_({model}, {names(paths)})")
    draft.before(stmt, *lines)


def _scaled(draft: Draft, value: Mapping[str, Any], parameters: Sequence[str]) -> None:
    model, paths, stmt = one_model(draft, value["modules"])
    draft.helper(WRITE)
    draft.helper(SCALE)
    factor = literal(float(value.get("factor", 0.0)))
    draft.before(stmt, f"scale_weights_({model}, {names(paths)}, {names(parameters)}, {factor})")


def output_scale(draft: Draft, value: Mapping[str, Any]) -> None:
    """Weights of the layers that make the output."""
    _scaled(draft, value, ("weight",))


def branch_scale(draft: Draft, value: Mapping[str, Any]) -> None:
    """Weights and biases of the last layers of branches."""
    _scaled(draft, value, ("weight", "bias"))


def zero_bias(draft: Draft, value: Mapping[str, Any]) -> None:
    """Biases."""
    _scaled(draft, {"modules": value["modules"]}, ("bias",))


def query_key_scale(draft: Draft, value: Mapping[str, Any]) -> None:
    """Weights of queries and keys; a fused layer keeps those of its values."""
    model, paths, stmt = one_model(draft, value["modules"])
    fused = set(value.get("fused", ()))
    inner = [path for path, whole in zip(paths, value["modules"], strict=True) if whole in fused]
    draft.helper(QUERIES)
    factor = literal(float(value["factor"]))
    draft.before(stmt, f"scale_queries_and_keys_({model}, {names(paths)}, {names(inner)}, {factor})")


def orthogonal_recurrent(draft: Draft, value: Mapping[str, Any]) -> None:
    """Hidden-to-hidden weights."""
    model, paths, stmt = one_model(draft, value["weights"])
    gain, seed = literal(float(value.get("gain", 1.0))), int(value.get("seed", 0))
    draft.helper(RECURRENT)
    draft.before(stmt, f"draw_recurrent_weights_({model}, {names(paths)}, gain={gain}, seed={seed})")
