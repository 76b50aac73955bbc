"""Edits that keep units alive: what is done to biases and dormant units after each step of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steadygrad.repair.effects.units import STEPS
from steadygrad.repair.patch.draft import Draft
from steadygrad.repair.patch.script import NoPatch
from steadygrad.repair.patch.targets import built
from steadygrad.repair.patch.values import literal
from steadygrad.repair.patch.weights import one_model, quoted

CLAMP_BIASES = '''
def with_clamped_biases(optimizer, most, *layers):
    """After each step the biases of these layers are within [-most, most]."""

    @torch.no_grad()
    def clamp(optimizer, args, kwargs):
        for layer in layers:
            layer.bias.clamp_(-most, most)

    optimizer.register_step_post_hook(clamp)
    return optimizer
'''
CENTRE = '''
def with_dead_units_centred(optimizer, steps, *layers):
    """In the first steps the mean of units that are negative on whole batches is taken off their biases."""
    looks, left = {}, [steps]

    def look(layer, args, output):
        if left[0] > 0 and layer.training and output.requires_grad and output.numel():
            units = output.detach().movedim(-1, 0)
            if not isinstance(layer, torch.nn.Linear):
                units = output.detach().transpose(0, 1) if output.dim() == layer.weight.dim() else output.detach()
            units = units.flatten(1)
            looks.setdefault(layer, []).append((units.amax(1), units.mean(1)))

    @torch.no_grad()
    def centre(optimizer, args, kwargs):
        for layer, seen in looks.items():
            largest = torch.stack([one[0] for one in seen]).amax(0)
            mean = torch.stack([one[1] for one in seen]).mean(0)
            dead = (largest <= 0) & mean.isfinite()
            layer.bias.copy_(torch.where(dead, layer.bias - mean.to(layer.bias), layer.bias))
        left[0] -= bool(looks)
        looks.clear()

    for layer in layers:
        layer.register_forward_hook(look)
    optimizer.register_step_post_hook(centre)
    return optimizer
'''
RESTART = '''
def with_dormant_units_restarted(optimizer, threshold, every, seed, *pairs):
    """Every so many steps, units that are hardly active beside those of their layer start anew.

    ``pairs``: a layer, and the only one that reads it. Incoming weights are drawn, outgoing ones are 0.
    """
    generator, sizes, steps = torch.Generator().manual_seed(seed), {}, [0]

    def look(layer, reader, x):
        if reader.training and x.numel():
            x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            axis = -1 if isinstance(reader, torch.nn.Linear) else -len(reader.kernel_size) - 1
            x = x.movedim(axis, 0).unflatten(0, (len(layer.weight), -1))
            sizes[layer] = x.flatten(1).abs().mean(1)

    @torch.no_grad()
    def restart(optimizer, args, kwargs):
        steps[0] += 1
        for layer, reader in pairs:
            size = sizes.get(layer)
            if steps[0] % every or size is None or not size.isfinite().all():
                continue
            units = (size <= threshold * size.mean()).nonzero().flatten()
            bound = layer.weight[0].numel() ** -0.5
            fresh = torch.empty(len(units), *layer.weight.shape[1:]).uniform_(-bound, bound, generator=generator)
            layer.weight[units] = fresh.to(layer.weight)
            own = [p for p in (layer.weight, layer.bias) if p is not None]
            for p in own:
                for value in [*optimizer.state.get(p, {}).values(), *([] if p is layer.weight else [p])]:
                    if isinstance(value, torch.Tensor) and value.shape == p.shape:
                        value[units] = 0
            for value in [reader.weight, *optimizer.state.get(reader.weight, {}).values()]:
                if isinstance(value, torch.Tensor) and value.shape == reader.weight.shape:
                    value.unflatten(1, (len(layer.weight), -1))[:, units] = 0

    for layer, reader in pairs:
        reader.register_forward_pre_hook(lambda reader, args, layer=layer: look(layer, reader, args[0]))
    optimizer.register_step_post_hook(restart)
    return optimizer
'''


def bias_clamp(draft: Draft, value: Mapping[str, Any]) -> None:
    """Biases within bounds."""
    model, paths = _of_one_optimizer(draft, value["modules"])
    draft.helper(CLAMP_BIASES)
    _wrap(
        draft, "with_clamped_biases", literal(float(value.get("limit", 1.0))), *(_at(model, p) for p in paths)
    )


def dead_unit_reset(draft: Draft, value: Mapping[str, Any]) -> None:
    """Biases that centre units born dead."""
    model, paths = _of_one_optimizer(draft, value["modules"])
    draft.helper(CENTRE)
    steps = str(int(value.get("steps", STEPS)))
    _wrap(draft, "with_dead_units_centred", steps, *(_at(model, path) for path in paths))


def dormant_reset(draft: Draft, value: Mapping[str, Any]) -> None:
    """A new start for dormant units."""
    layers, readers = zip(*value["links"], strict=True)
    model, paths = _of_one_optimizer(draft, [*layers, *readers])
    draft.helper(RESTART)
    pairs = zip(paths[: len(layers)], paths[len(layers) :], strict=True)
    settings = (
        literal(float(value.get("threshold", 0.1))),
        *(str(int(value.get(k, d))) for k, d in SETTINGS),
    )
    _wrap(
        draft,
        "with_dormant_units_restarted",
        *settings,
        *(f"({_at(model, layer)}, {_at(model, reader)})" for layer, reader in pairs),
    )


SETTINGS = (("every", 1000), ("seed", 0))  # of a reset, and what they are if a plan does not say


def _of_one_optimizer(draft: Draft, paths: Sequence[str]) -> tuple[str, list[str]]:
    model, inner, _ = one_model(draft, paths)
    if len(built(draft)) != 1:
        raise NoPatch("with several optimizers it is not known which trains these layers")
    return model, inner


def _at(model: str, path: str) -> str:
    return f"{model}.get_submodule({quoted(path)})"


def _wrap(draft: Draft, function: str, *args: str) -> None:
    draft.wrap(built(draft)[0].call, f"{function}(", f", {', '.join(args)})")
