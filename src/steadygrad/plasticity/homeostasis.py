"""Homeostasis: a net that keeps its own gains near 1, before the training and during it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad import _check
from steadygrad._preserve import untouched
from steadygrad.init.recurrent import num_gates
from steadygrad.plasticity._chain import links
from steadygrad.plasticity._gains import Meter, Recurrent, TimeMeter
from steadygrad.plasticity.scaling import nearest_orthogonal_, recurrent_factor, synaptic_factor

CHANGE_OVER_TIME = 3.0  # most that T |dW| / |W| may be; see studies/homeostasis


@dataclass(frozen=True)
class Reading:
    """What a pass through the model showed, and what was done about it."""

    gains: dict[str, float]  # layer -> sqrt(forward gain * backward gain); nan where not measured
    growth: dict[str, float]  # recurrence -> decades a step, the larger of forward and backward
    factors: dict[str, float]  # layer or recurrence -> factor on its weights
    change: float  # sum over the layers of |update| / |weight| that the optimizer asked for; 0 without a step
    kept: float  # share of the update that was kept


class Homeostasis:
    """Synaptic scaling for deep and recurrent nets: calibrate the gains once, then hold them while training.

        calibrate:   W <- U V^T,  then some times  W <- W (f b)^(-rate/2)
        each step:   update <- update * min(1, max_change / sum_l |dW_l| / |W_l|)
                     W <- W (f b)^(-rate/2),   bias <- bias min(1, the same)

    with f and b the gain of a layer and what follows it on the signal and on the gradient. A recurrence over T steps
    may change by |dW| / |W| of at most 3 / T a step, shrinks while its state or its gradient grows from step to step
    (`recurrent_factor`), and an update that comes while the growth is above ``max_growth`` is taken back.

    When to use it: a plain deep net (no skips, no norms) of bounded activations, or a recurrent net, whose weights
    have the wrong gain. Where you may choose the weights freely, orthogonal ones (``sg.init``) do the same for a
    recurrent net at no cost.

    Limits: the calibration changes the function of the model: it belongs before the training. Online scaling without it
    does not rescue a net that explodes. A plain deep ReLU net is not cured: its layers see all examples alike, which no
    gain changes; it wants skips or norms. Left alone, and named in ``left_out``: layers behind which a norm or a skip
    stands, the last layer, tied, frozen and parametrised weights. A recurrence over a packed sequence, or
    in both directions, cannot be measured.

    Values in use: rate 0.3, max_change 0.1, max_growth 0.02 (the study ``homeostasis`` of this project).

    Cost: two norms a layer and step; one copy of the parameters; with ``every`` above 1 the norms are taken
    every so many steps only. The calibration: ``passes`` forward and backward passes and one decomposition a layer.

    Args:
        model: in training mode; it is hooked, and changed by ``calibrate`` and ``step`` only.
        optimizer: whose updates are limited; all of its parameters are copied before each step.
        example_input: as for ``sg.init.follow``; tells which layer feeds which.
        rate: share of the way to a gain of 1 at each scaling, in logarithms; above 0, at most 1.
        max_change: bound on the sum over layers of relative update; above 0, inf for none.
        max_growth: growth of a recurrence, decades a step, above which an update is taken back; above 0.
        every: steps between two scalings, at least 1.

    ``step`` is called after each step of the optimizer (and does nothing if that was skipped). Inf and nan: a
    layer whose gain is not finite is not scaled; an update that is not finite is left as it is, for the guard or the
    loss to see.

    Raises ValueError if there is nothing to regulate, or on a bidirectional recurrence; RuntimeError if the model is in
    evaluation mode, or ``step`` comes before ``calibrate``. Nothing is changed then.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <...>
        >>> model = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 2))
        >>> for layer in model[::2]:
        ...     _ = nn.init.normal_(layer.weight, std=2.5 / 4)
        >>> x, y = torch.randn(32, 16), torch.randint(2, (32,))
        >>> loss = lambda: nn.functional.cross_entropy(model(x), y)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        >>> homeostasis = Homeostasis(model, optimizer, x)
        >>> readings = homeostasis.calibrate(loss)
        >>> bool(max(readings[0].gains.values()) < 1.1)
        True
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss().backward()
        ...     optimizer.step()
        ...     reading = homeostasis.step()

    Source: synaptic scaling: Turrigiano (2008), https://doi.org/10.1016/j.cell.2008.10.008; the bound on the summed
    relative change: Bernstein et al. (2020), https://arxiv.org/abs/2002.03432; the controller is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_input: Any,
        *,
        rate: float = 0.3,
        max_change: float = 0.1,
        max_growth: float = 0.02,
        every: int = 1,
    ) -> None:
        self.rate = _check.fraction("rate", rate, zero=False)
        self.max_change = _check.positive("max_change", max_change)
        self.max_growth = _check.positive("max_growth", max_growth)
        self.every = _check.count("every", every)
        self.model = model
        found, self.left_out = links(model, example_input)
        # The net does not choose the size of its data, so that the first layer has no gain to hold.
        self._first = [link.layer for link in found if link.first]
        found = [link for link in found if not link.first]
        self.layers = {link.name: link.layer for link in found}
        self.recurrences: dict[str, Recurrent] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        }
        _check_directions(self.recurrences)
        if not self.layers and not self.recurrences:
            raise ValueError(
                "there is nothing to regulate: no recurrence of torch, and no plain hidden layer; "
                + "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            )
        self._readers = {link.name: link.reader for link in found}
        measured = dict.fromkeys([*self.layers.values(), *self._readers.values()])
        self._meter = Meter(list(measured))
        self._clocks = {name: TimeMeter(module) for name, module in self.recurrences.items()}
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._before: list[Tensor] | None = None  # parameters as they were when the optimizer began its step
        self._hook = optimizer.register_step_pre_hook(self._remember)
        self.num_steps = 0
        self.calibrated = False
        self._listen()

    def calibrate(
        self, loss: Callable[[], Tensor], passes: int = 10, orthogonal: bool = True
    ) -> list[Reading]:
        """Bring the gains to 1 before the training, without a step of the optimizer.

        Args:
            loss: runs the model on a batch and returns the loss; called once a pass, with the same random numbers
                each time, and undone but for the weights: gradients and buffers are as before.
            passes: at least 1.
            orthogonal: begin with the nearest orthogonal matrix of each square, each first and each recurrent weight.
                Without it only the scale changes; that is not enough beyond some 50 layers.

        Returns what each pass showed, before its scaling.

        Raises RuntimeError in evaluation mode, ValueError if a weight is not finite; nothing is changed then.
        """
        _check.training_mode(self.model, "calibrate")
        _check.count("passes", passes)
        weights = [m.weight for m in (*self._first, *self.layers.values())] + self._hidden_weights()
        if not all(bool(w.isfinite().all()) for w in weights):  # host sync
            raise ValueError("a weight has inf or nan entries: initialise the model anew before calibrate")
        if orthogonal:
            for module in (*self._first, *filter(_is_square, self.layers.values())):
                nearest_orthogonal_(module.weight)
            for recurrence in self.recurrences.values():
                for weight in hidden_weights(recurrence):
                    nearest_orthogonal_(weight, num_gates(recurrence))
        readings = []
        for _ in range(passes):
            self._listen(True)
            with untouched(self.model), torch.enable_grad():
                loss().backward()
            readings.append(self._scale())
        self.calibrated = True
        self._listen()
        return readings

    def step(self) -> Reading | None:
        """Limit the update that the optimizer has just made, and scale; None if there was no such update."""
        _check.training_mode(self.model, "step")
        if not self.calibrated:
            raise RuntimeError(
                "online scaling of a net that is not calibrated does not help: call calibrate(loss) before the training"
            )
        before, self._before = self._before, None
        if before is None:
            return None
        was = dict(zip(self._parameters, before, strict=True))
        due = self.num_steps % self.every == 0
        growth = self._growth() if due else {}
        change = _relative_change([m.weight for m in self.layers.values() if m.weight in was], was)
        kept = _share(self.max_change, change)
        for name, module in self.recurrences.items():  # a weight that acts T times changes the state T times
            asked = _relative_change([w for w in hidden_weights(module) if w in was], was)
            kept = min(kept, _share(CHANGE_OVER_TIME, asked * self._clocks[name].steps))
        if any(max(forward, backward) > self.max_growth for forward, backward, _ in growth.values()):
            kept = 0.0
        if kept < 1:
            _take_back(self._parameters, was, 1 - kept)
        reading = self._scale(growth) if due else Reading({}, {}, {}, 0.0, 1.0)
        self.num_steps += 1
        self._listen()
        return Reading(reading.gains, reading.growth, reading.factors, change, kept)

    def close(self) -> None:
        """Take all hooks off; the model and the optimizer are ordinary ones again."""
        self._hook.remove()
        self._meter.remove()
        for clock in self._clocks.values():
            clock.remove()

    def state_dict(self) -> dict[str, Any]:
        """Steps so far and whether it is calibrated; the settings are not in it."""
        return {"num_steps": self.num_steps, "calibrated": self.calibrated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        if set(state) != {"num_steps", "calibrated"} or not isinstance(state["calibrated"], bool):
            raise ValueError(f"not a state of Homeostasis: {dict(state)}")
        self.num_steps, self.calibrated = (
            _check.count("num_steps", state["num_steps"], 0),
            state["calibrated"],
        )
        self._before = None
        self._listen()

    def _listen(self, now: bool | None = None) -> None:
        on = self.calibrated and self.num_steps % self.every == 0 if now is None else now
        self._meter.listening = on
        for clock in self._clocks.values():
            clock.listening = on

    @torch.no_grad()
    def _remember(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._before = [p.detach().clone() for p in self._parameters]

    def _hidden_weights(self) -> list[Tensor]:
        return [w for module in self.recurrences.values() for w in hidden_weights(module)]

    def _growth(self) -> dict[str, tuple[float, float, float]]:
        return {name: clock.read() for name, clock in self._clocks.items()}

    @torch.no_grad()
    def _scale(self, growth: Mapping[str, tuple[float, float, float]] | None = None) -> Reading:
        growth = self._growth() if growth is None else growth
        signal, gradient = (
            dict(zip(self._meter.modules, sizes, strict=True)) for sizes in self._meter.read()
        )
        gains: dict[str, float] = {}
        factors: dict[str, float] = {}
        for name, layer in self.layers.items():
            reader = self._readers[name]
            forward = _ratio(signal[reader], signal[layer])
            backward = _ratio(gradient[layer], gradient[reader])
            gains[name] = math.sqrt(forward * backward)
            factors[name] = synaptic_factor(forward, backward, self.rate)
            layer.weight.mul_(factors[name])
            if layer.bias is not None:
                layer.bias.mul_(min(1.0, factors[name]))
        for name, reading in growth.items():
            factors[name] = recurrent_factor(*reading, rate=self.rate)
            for weight in hidden_weights(self.recurrences[name]):
                weight.mul_(factors[name])
        return Reading(gains, {n: max(g[:2]) for n, g in growth.items()}, factors, 0.0, 1.0)


def hidden_weights(module: nn.Module) -> list[Tensor]:
    """The hidden-to-hidden weights of a recurrence of torch."""
    return [p for name, p in module.named_parameters(recurse=False) if name.startswith("weight_hh")]


def _is_square(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features == layer.out_features


@torch.no_grad()
def _relative_change(weights: Sequence[Tensor], was: Mapping[Tensor, Tensor]) -> float:
    """Sum of |dW| / |W|."""
    if not weights:
        return 0.0
    old = [was[w] for w in weights]
    moved, sizes = torch._foreach_norm(torch._foreach_sub(list(weights), old)), torch._foreach_norm(old)
    return float(sum(m.double() / s.double() for m, s in zip(moved, sizes, strict=True)))  # host sync


@torch.no_grad()
def _take_back(parameters: Sequence[Tensor], was: Mapping[Tensor, Tensor], share: float) -> None:
    for parameter in parameters:
        parameter.copy_(was[parameter]) if share == 1 else parameter.lerp_(was[parameter], share)


def _share(allowed: float, asked: float) -> float:
    return min(1.0, allowed / asked) if 0 < asked < math.inf else 1.0


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def _check_directions(recurrences: Mapping[str, Recurrent]) -> None:
    for name, module in recurrences.items():
        if getattr(module, "bidirectional", False):
            raise ValueError(
                f"{name or 'the model'} runs in both directions, whose growth cannot be told apart: regulate "
                "one direction, or start from sg.init.orthogonal_recurrent_"
            )
