"""One initialisation under way: draws, writes, and notes what it did; puts everything back when it fails."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.init.critical import Critical, critical_point
from steadygrad.init.follow import Followed, Layer
from steadygrad.init.gain import gated_gain, init_gain, is_bounded
from steadygrad.init.orthogonal import scratch
from steadygrad.init.recurrent import forget_block


@dataclass(frozen=True, slots=True)
class InitRow:
    """What became of one weight."""

    weight: str
    activation: str  # what follows it
    method: str  # "he_normal", "orthogonal", ...
    gain: float  # nan where the method has none
    fan_in: int
    std: float  # of the values now in the weight, about 0
    note: str = ""


@dataclass
class Job:
    """What a scheme works on."""

    model: nn.Module
    followed: Followed
    example_input: object
    generator: torch.Generator
    keep: tuple[str, ...] = ()  # name prefixes
    rows: dict[str, InitRow] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)  # weight -> why it was left alone
    notes: list[str] = field(default_factory=list)
    # parameter -> factors of Adam's and of SGD's learning rate
    multipliers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self._check_keep()
        for layer in self.followed:
            reason = self._why_kept(layer)
            if reason:
                self.kept[layer.weight] = reason
        for name in self.followed.unused:
            if self.parameters[name].dim() >= 2:
                self.kept[name] = "not used in the run on example_input"

    def _check_keep(self) -> None:
        names = {*self.parameters, *(layer.weight for layer in self.followed)}
        for prefix in self.keep:
            if not any(name.startswith(prefix) for name in names):
                parts = {n[: i + 1] for n in names for i, c in enumerate(n) if c == "."}
                near = difflib.get_close_matches(prefix, sorted(names | parts), n=3, cutoff=0.0)
                raise ValueError(
                    f"keep: no parameter's name begins with {prefix!r}; the nearest are "
                    f"{', '.join(map(repr, near))}: nothing was changed"
                )

    def _why_kept(self, layer: Layer) -> str:
        if (
            any(name.startswith(self.keep) for name in (layer.weight, *layer.params, *layer.tied))
            and self.keep
        ):
            return "named in keep"
        if not all(self.parameters[p].requires_grad for p in layer.params):
            return "frozen: requires_grad is False"
        if not all(self.parameters[p].is_floating_point() for p in layer.params):
            return "not a floating tensor"
        if not self._is_settable(layer):
            return f"computed from {', '.join(layer.params)}, without a way to set it"
        return ""

    def _is_settable(self, layer: Layer) -> bool:
        if len(layer.params) == 1 and layer.params[0] == layer.weight:
            return self.parameters[layer.weight].numel() == math.prod(layer.shape)
        if self._weight_norm(layer):
            return True
        chain = getattr(self.model.get_submodule(layer.module), "parametrizations", {})
        name = layer.weight.rpartition(".")[2]
        return name in chain and all(hasattr(p, "right_inverse") for p in chain[name])

    def _weight_norm(self, layer: Layer) -> bool:
        return sorted(p[-2:] for p in layer.params) == ["_g", "_v"]

    def layers(self) -> Iterator[Layer]:
        """The layers whose weight may be written, in order of execution."""
        return (layer for layer in self.followed if layer.weight not in self.kept)

    def read(self, layer: Layer) -> Tensor:
        """The weight as it is now, detached, in the shape the call sees."""
        with torch.no_grad():
            if len(layer.params) == 1 and layer.params[0] == layer.weight:
                weight = self.parameters[layer.weight].detach()
                return weight.t() if self._is_turned(layer, weight) else weight.reshape(layer.shape)
            if self._weight_norm(layer):
                g, v = (self.parameters[p].detach() for p in sorted(layer.params))
                return v * (g / _norm_except(v, g))
            return getattr(self.model.get_submodule(layer.module), layer.weight.rpartition(".")[2]).detach()

    def write(
        self, layer: Layer, values: Tensor, method: str, gain: float = math.nan, note: str = ""
    ) -> None:
        """Put values into a weight, also through a parametrization, and note it."""
        if not values.isfinite().all():
            raise ValueError(
                f"{method} gave non-finite values for {layer.weight!r} (gain {gain:.6g}): nothing was changed"
            )
        with torch.no_grad():
            if len(layer.params) == 1 and layer.params[0] == layer.weight:
                weight = self.parameters[layer.weight]
                weight.copy_(values.t() if self._is_turned(layer, weight) else values.reshape(weight.shape))
            elif self._weight_norm(layer):
                g, v = (self.parameters[p] for p in sorted(layer.params))
                v.copy_(values)
                g.copy_(_norm_except(v, g))
            else:
                owner = self.model.get_submodule(layer.module)
                name = layer.weight.rpartition(".")[2]
                setattr(owner, name, values.to(getattr(owner, name)))
                now = getattr(owner, name)
                if not torch.allclose(now.float(), values.to(now).float(), rtol=1e-2, atol=1e-6):
                    note = "; ".join(filter(None, [note, "its parametrization changed the values"]))
        now = self.read(layer)
        if not now.isfinite().all():
            raise ValueError(f"{method} overflows the {now.dtype} of {layer.weight!r}: nothing was changed")
        std = now.float().square().mean().sqrt().item() if now.numel() else 0.0
        self.rows[layer.weight] = InitRow(
            layer.weight, layer.activation, method, gain, layer.fan_in, std, note
        )

    def _is_turned(self, layer: Layer, weight: Tensor) -> bool:
        """The call saw the transpose of the parameter, as in ``x @ W.t()``."""
        return (
            weight.dim() == 2
            and tuple(weight.shape) != layer.shape
            and tuple(weight.shape)[::-1] == layer.shape
        )

    def draw(self, layer: Layer, fill: Callable[[Tensor], object]) -> Tensor:
        """A fresh tensor for a weight, filled by ``fill`` with numbers of the job's own generator."""
        like = torch.empty(layer.shape, dtype=self.parameters[layer.params[0]].dtype, device="meta")
        fresh = scratch(like, self.generator)
        with torch.no_grad():
            fill(fresh)
        return fresh

    def normal(self, layer: Layer, std: float, method: str, gain: float = math.nan, note: str = "") -> None:
        self.write(
            layer,
            self.draw(layer, lambda t: t.normal_(0.0, std, generator=self.generator)),
            method,
            gain,
            note,
        )

    def uniform(self, layer: Layer, std: float, method: str, gain: float = math.nan, note: str = "") -> None:
        bound = math.sqrt(3.0) * std
        self.write(
            layer,
            self.draw(layer, lambda t: t.uniform_(-bound, bound, generator=self.generator)),
            method,
            gain,
            note,
        )

    def scale(self, layer: Layer, factor: float, note: str) -> None:
        """Multiply a weight that was written before."""
        row = self.rows[layer.weight]
        self.write(
            layer, self.read(layer) * factor, row.method, row.gain, "; ".join(filter(None, [row.note, note]))
        )

    def bias(self, layer: Layer, std: float = 0.0) -> None:
        """Biases to 0 or N(0, std^2), an LSTM's forget gate to 1. One that is constant and not 0 was chosen: kept."""
        for name in layer.bias:
            bias = self.parameters[name]
            if not bias.requires_grad or any(name.startswith(k) for k in self.keep):
                continue
            if bias.numel() > 1 and bool((bias == bias.flatten()[0]).all()) and bias.flatten()[0] != 0:
                self.notes.append(
                    f"{name} is constant at {bias.flatten()[0].item():g}: left as it was chosen"
                )
                continue
            with torch.no_grad():
                fresh = scratch(bias, self.generator)
                bias.copy_(fresh.normal_(0.0, std, generator=self.generator) if std else fresh.zero_())
                if layer.gates == 4 and layer.kind == "recurrent_input":
                    forget_block(bias).fill_(1.0)

    def set_vector(self, name: str, value: float) -> bool:
        """Fill a scale parameter; False if it may not be written."""
        parameter = self.parameters[name]
        if not parameter.requires_grad or any(name.startswith(k) for k in self.keep):
            return False
        with torch.no_grad():
            parameter.fill_(value)
        return True

    def gain(self, layer: Layer) -> float:
        """The gain for what follows a weight."""
        if layer.function is None:
            return 1.0
        try:
            return _once(self._gains, layer.function, gated_gain if layer.gated else init_gain)
        except (ValueError, TypeError) as error:
            self.notes.append(f"{layer.activation} has no gain ({error}): 1 is taken before it")
            return 1.0

    def critical(self, layer: Layer) -> Critical | None:
        """The critical point of what follows; None if there is none."""
        if layer.function is None:
            return None
        try:
            return _once(self._points, layer.function, critical_point)
        except (ValueError, TypeError):
            return None

    def is_bounded(self, layer: Layer) -> bool:
        """Whether what follows saturates on both sides."""
        if layer.function is None:
            return False
        try:
            return _once(self._bounds, layer.function, is_bounded)
        except (ValueError, TypeError):
            return False

    _gains: dict[Any, Any] = field(default_factory=dict)
    _points: dict[Any, Any] = field(default_factory=dict)
    _bounds: dict[Any, Any] = field(default_factory=dict)


def _once(cache: dict[Any, Any], function: object, work: Callable[..., Any]) -> Any:
    key = function if isinstance(function, str) else getattr(function, "key", function)
    if (key, work) not in cache:
        cache[key, work] = work(function)
    return cache[key, work]


def _norm_except(v: Tensor, g: Tensor) -> Tensor:
    """The norm of v over the dimensions that g does not have."""
    return v.norm(dim=[i for i in range(v.dim()) if g.shape[i] == 1], keepdim=True)
