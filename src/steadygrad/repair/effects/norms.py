"""Normalisation behind layers that have none."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from steadygrad.repair.effects._weights import counterparts, is_lazy, present
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable

MEAN, VAR = "_steadygrad_running_mean", "_steadygrad_running_var"
MOMENTUM, EPS = 0.1, 1e-5  # torch's


class _NormBehind(Effect):
    """A norm without parameters behind linear layers and convolutions, in training and in evaluation.

    The value is ``{"modules": [path, ...]}``. Copies that nobody trains (target networks) get it too. A
    non-finite value in an output stays visible.
    """

    order = 71

    def __init__(self, value: Any) -> None:
        self._paths = [str(path) for path in value["modules"]]
        self._done: set[int] = set()
        self._hooks: list[Any] = []

    def models(self, models: Models) -> None:
        copies = counterparts(models)
        for path, module in present(models, self._paths, self._done):
            if not isinstance(module, (nn.Linear, _ConvNd)) or is_lazy(module):
                raise NotApplicable(f"{path} is no linear layer or convolution that has its weights already")
            for same in (module, *copies.get(id(module), ())):
                self._done.add(id(same))
                self._add(same)

    def _add(self, module: nn.Module) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class LayerNormBehind(_NormBehind):
    """``F.layer_norm`` over the units of a linear layer, over channels and positions of a convolution together."""

    key = "layer_norm"

    def _add(self, module: nn.Module) -> None:
        if _units(module) < 2:
            raise NotApplicable("layer norm over one unit is 0, whatever the unit says")
        hook = _normalise_image if isinstance(module, _ConvNd) else _normalise_units
        self._hooks.append(module.register_forward_hook(hook))


def _normalise_units(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return F.layer_norm(output, output.shape[-1:])


def _normalise_image(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    axes = _spatial(module)
    if output.dim() == axes + 1:  # a single image, without a batch
        return F.group_norm(output.unsqueeze(0), 1).squeeze(0)
    return F.group_norm(output, 1)


class BatchNormBehind(_NormBehind):
    """Each unit, or channel, with mean 0 and variance 1 over the batch; in evaluation by running averages.

    The averages are buffers of the layer that are not saved with it. While a unit has one value in the batch, the
    averages serve in training as well. With ``"preserve": true`` in the value each unit is brought back to the mean
    and deviation that it has in the first batch that the layer is given, by numbers that stay fixed: there the
    function is the same, to the last digits, before and after.
    """

    key = "batch_norm"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._preserve = bool(value.get("preserve", False))
        self._modules: list[nn.Module] = []

    def _add(self, module: nn.Module) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        zeros = weight.new_zeros(_units(module), dtype=torch.promote_types(weight.dtype, torch.float32))
        module.register_buffer(MEAN, zeros, persistent=False)
        module.register_buffer(VAR, zeros + 1, persistent=False)
        if self._preserve:
            for name in (f"{MEAN}_kept", f"{VAR}_kept"):
                module.register_buffer(name, None, persistent=False)
        self._modules.append(module)
        self._hooks.append(
            module.register_forward_hook(functools.partial(_standardise, preserve=self._preserve))
        )

    def remove(self) -> None:
        super().remove()
        for module in self._modules:
            for name in (MEAN, VAR, f"{MEAN}_kept", f"{VAR}_kept"):
                if name in module._buffers:
                    delattr(module, name)
        self._modules = []


def _standardise(module: nn.Module, args: Any, output: Tensor, *, preserve: bool) -> Tensor:
    mean, var = module._buffers[MEAN], module._buffers[VAR]
    assert mean is not None and var is not None
    channels_first = isinstance(module, _ConvNd) and output.dim() == _spatial(module) + 2
    if channels_first:
        x = output
    elif isinstance(module, _ConvNd):
        x = output.unsqueeze(0)
    else:
        x = output.reshape(-1, output.shape[-1])
    several = x.numel() > x.shape[1]
    if preserve and module._buffers[f"{MEAN}_kept"] is None and several:
        _keep(module, x.detach())
    y = F.batch_norm(x, mean, var, training=module.training and several, momentum=MOMENTUM, eps=EPS)
    kept_mean, kept_var = module._buffers.get(f"{MEAN}_kept"), module._buffers.get(f"{VAR}_kept")
    if kept_mean is not None and kept_var is not None:
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = y * (kept_var + EPS).sqrt().reshape(shape).to(y) + kept_mean.reshape(shape).to(y)
    return y.reshape(output.shape)


@torch.no_grad()
def _keep(module: nn.Module, x: Tensor) -> None:
    """Mean and variance of each unit in this batch; the running averages start from them."""
    axes = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x.float(), dim=axes, correction=0)
    for name, value in ((MEAN, mean), (VAR, var)):
        module._buffers[f"{name}_kept"] = value
        buffer = module._buffers[name]
        assert buffer is not None
        buffer.copy_(value)


def _units(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, _ConvTransposeNd):
        return weight.shape[1] * module.groups
    return weight.shape[0]


def _spatial(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.dim() - 2
