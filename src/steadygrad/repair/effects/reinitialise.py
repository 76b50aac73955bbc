"""Fresh weights before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from steadygrad.init.orthogonal import orthogonal_blocks_
from steadygrad.repair.effects._weights import (
    Followers,
    LoadedModules,
    check_untrained,
    is_lazy,
    present,
    tied,
    write,
)
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable

MIN_VALUES = 8  # of a unit in the batch; fewer do not tell where its centre is
SCHEMES = ("he", "xavier", "orthogonal", "lsuv")


class Reinitialise(Effect):
    """New weights for linear layers and convolutions, and biases of 0, as if the script had drawn them so.

    The value is ``{"scheme": name, "modules": {path: gain}, "seed": k}``:

    ==============  ============================================================================
    ``he``          normal, standard deviation gain / sqrt(fan_in)
    ``xavier``      uniform, standard deviation gain sqrt(2 / (fan_in + fan_out))
    ``orthogonal``  gain times orthogonal rows or columns
    ``lsuv``        orthogonal; then, within the first pass forward, each divided by the standard deviation of what
                    it puts out on that batch, and its biases set so that each unit has the mean 0 there
    ==============  ============================================================================

    All are drawn in the order of ``modules`` from one generator on the CPU, seeded with k (0 if left out): the same
    numbers whatever the script has drawn. A tied weight is written once, and not divided by "lsuv"; a parametrised
    one is assigned. Copies that nobody trains (target networks) get the same values. "lsuv" leaves a layer as it is
    where its output has no variance or is not finite, and keeps the factor by which another effect has shrunk it.

    Raises :class:`NotApplicable` where the weights were loaded or trained, or are not there yet (lazy layers).
    The weights stay when the effect is removed.

    Source: He et al. (2015), https://arxiv.org/abs/1502.01852; Glorot & Bengio (2010); Saxe et al. (2014),
    https://arxiv.org/abs/1312.6120; Mishkin & Matas (2016), https://arxiv.org/abs/1511.06422, to which the biases are
    added: behind sigmoids, whose outputs have no mean of 0, the signal would drown in the mean.
    """

    key = "reinitialise"
    order = 60

    def __init__(self, value: Any) -> None:
        self._scheme = value["scheme"]
        self._gains = {str(path): float(gain) for path, gain in value["modules"].items()}
        if self._scheme not in SCHEMES or not all(0 < gain < math.inf for gain in self._gains.values()):
            raise NotApplicable(f"reinitialise has no scheme {self._scheme!r} with gains {self._gains}")
        self._generator = torch.Generator().manual_seed(int(value.get("seed", 0)))
        self._loaded = LoadedModules()
        self._done: set[int] = set()
        self._norms: dict[nn.Module, float] = {}  # of weights still to be divided, as they were drawn
        self._pinned: set[nn.Module] = set()  # used in a graph that still needs the weight as it was
        self._hooks: dict[nn.Module, Any] = {}
        self._followers: list[Followers] = []

    def install(self) -> None:
        self._loaded.install()

    def models(self, models: Models) -> None:
        chosen = present(models, self._gains, self._done)
        modules = [module for _, module in chosen]
        for path, module in chosen:
            if not isinstance(module, (nn.Linear, _ConvNd)) or is_lazy(module):
                raise NotApplicable(f"{path} is no linear layer or convolution that has its weights already")
        parameters = [p for module in modules for p in module.parameters()]
        self._loaded.check(modules)
        check_untrained(models, parameters)
        followers = Followers(models, modules)
        shared, written = tied(models), set[int]()
        for path, module in chosen:
            own = module._parameters.get("weight")  # None for a parametrised one
            if own is None or id(own) not in written:
                self._draw(module, self._gains[path])
                written.add(id(own))
            if self._scheme == "lsuv" and id(own) not in shared:
                weight = module.weight
                assert isinstance(weight, Tensor)
                self._norms[module] = float(weight.detach().norm())
                self._hooks[module] = module.register_forward_hook(self._divide, with_kwargs=True)
        followers.follow()
        if self._hooks:
            self._followers.append(followers)

    @torch.no_grad()
    def _draw(self, module: nn.Module, gain: float) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # A transposed convolution keeps its weight as in x out; the numbers are drawn for out x in.
        turned = isinstance(module, _ConvTransposeNd)
        fresh = torch.empty(weight.shape, dtype=torch.float32)
        fan_in = fresh[0].numel()
        fan_out = fresh.shape[0] * fresh[0, 0].numel() // getattr(module, "groups", 1)
        if turned:
            fan_in, fan_out = fan_out, fan_in
        if self._scheme == "he":
            fresh.normal_(0, gain / math.sqrt(fan_in), generator=self._generator)
        elif self._scheme == "xavier":
            bound = gain * math.sqrt(6 / (fan_in + fan_out))
            fresh.uniform_(-bound, bound, generator=self._generator)
        else:
            orthogonal_blocks_(fresh, 1, gain, self._generator)
        write(module, "weight", fresh.to(weight))
        if isinstance(module.bias, Tensor):
            write(module, "bias", torch.zeros_like(module.bias))

    @torch.no_grad()
    def _divide(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
        """Bring what a layer puts out to variance 1, in the middle of the pass: those behind it see the result."""
        if module in self._pinned or not isinstance(output, Tensor):
            return None
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        units = _by_unit(module, output.detach().double())
        mean = units.mean(1)
        centres = isinstance(bias, Tensor) and units.shape[1] >= MIN_VALUES
        deviation = float((units - mean[:, None] if centres else units).std(correction=0))  # host sync
        shrunk = float(weight.detach().norm()) / self._norms[module]
        if not 0 < deviation < math.inf or not 0 < shrunk < math.inf:
            if output.requires_grad:
                self._pinned.add(module)
            return None
        factor = shrunk / deviation
        write(module, "weight", weight * factor)
        if centres:
            assert isinstance(bias, Tensor)
            write(module, "bias", (bias - factor * mean).to(bias))
        self._hooks.pop(module).remove()
        with torch.set_grad_enabled(output.requires_grad):
            return module.forward(*args, **kwargs)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self._pinned.clear()
        for followers in self._followers:
            followers.follow()
        self._followers = []

    def remove(self) -> None:
        self._loaded.remove()
        for hook in self._hooks.values():
            hook.remove()
        self._hooks, self._followers = {}, []


def _by_unit(module: nn.Module, output: Tensor) -> Tensor:
    """The values of each unit or channel in a row of their own."""
    axis = -1 if isinstance(module, nn.Linear) else output.dim() - 1 - len(module.kernel_size)  # type: ignore[arg-type]
    return output.movedim(axis, 0).flatten(1)
