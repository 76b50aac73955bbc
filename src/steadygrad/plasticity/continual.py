"""Continual backpropagation: at every step a little of the net starts anew, where it is missed least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad import _check
from steadygrad.plasticity._chain import Link
from steadygrad.plasticity._units import Activity, hidden_links, restart_units_


def contribution(link_out: Tensor, size: Tensor) -> Tensor:
    """What a unit gives to the next layer: its size times that of its outgoing weights.

        |h_i| sum_k |w_ki|

    When to use it: as the utility of a unit; `ContinualBackprop` averages it.

    Values in use: none to choose.

    Cost: one read of the weights.

    Args:
        link_out: outgoing weights, (readers, units).
        size: mean |h_i|, (units,).

    Returns (units,); inf or nan where the unit's is.

    Example:
        >>> contribution(torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 0.5])).tolist()
        [3.0, 1.0]

    Source: Dohare et al. (2024), contribution utility, https://doi.org/10.1038/s41586-024-07711-7
    """
    return size * link_out.abs().sum(0)


class ContinualBackprop:
    """Replace a small share of the least useful units, step after step, so that a net goes on learning for ever.

        u_i <- eta u_i + (1 - eta) |h_i| sum_k |w_ki|
        of the units older than ``maturity`` in a layer, the share ``replacement_rate`` with the lowest u starts
        anew: incoming weights drawn, outgoing weights 0

    The mean that a replaced unit gave goes into the bias of the next layer.

    When to use it: data that changes without end, on which a net trained by backpropagation slowly stops learning.

    Values in use: replacement_rate 1e-4, maturity 100, decay 0.99 (the paper's, by task 1e-6 to 1e-3).

    Cost: one mean a layer and forward pass, one read of the outgoing weights a step.

    Args:
        model: hooked; changed by ``step`` only.
        optimizer: its state of the replaced weights is cleared.
        example_input: as for ``sg.init.follow``.
        replacement_rate: share of a layer's mature units replaced a step, 0 to 1; parts of a unit add up.
        maturity: steps for which a new unit is safe, at least 0.
        decay: eta, at least 0, below 1.
        seed: of the fresh weights, torch's own uniform ones; the global random stream is not touched.

    ``step`` is called after each step of the optimizer and returns layer -> units replaced. A layer with inf or nan
    among its activations learns nothing from it. Layers behind which a norm or a skip stands are in ``left_out``.

    Raises ValueError if the model has no such layer; ``step`` raises RuntimeError in evaluation mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> renewal = ContinualBackprop(model, optimizer, torch.zeros(1, 4), replacement_rate=0.125, maturity=0)
        >>> _ = model(torch.randn(64, 4))
        >>> renewal.step()
        {'0': 1}

    Source: Dohare et al. (2024), algorithm 1, https://doi.org/10.1038/s41586-024-07711-7
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_input: Any,
        *,
        replacement_rate: float = 1e-4,
        maturity: int = 100,
        decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        self.replacement_rate = _check.fraction("replacement_rate", replacement_rate)
        self.maturity = _check.count("maturity", maturity, 0)
        self.decay = _check.fraction("decay", decay, one=False)
        self.model, self.optimizer = model, optimizer
        self._links, self.left_out = hidden_links(model, example_input)
        self._generator = torch.Generator().manual_seed(_check.count("seed", seed, 0))
        self._activity = Activity(self._links)
        like = {link.name: link.layer.weight.device for link in self._links}
        self._utility = {link.name: torch.zeros(link.units, device=like[link.name]) for link in self._links}
        self._mean = {name: torch.zeros_like(u) for name, u in self._utility.items()}
        self._age = {name: torch.zeros_like(u) for name, u in self._utility.items()}
        self._due = {link.name: 0.0 for link in self._links}

    @torch.no_grad()
    def step(self) -> dict[str, int]:
        """Learn what each unit is good for, and replace those that are due."""
        _check.training_mode(self.model, "step")
        done: dict[str, int] = {}
        for link in self._links:
            if link.name in self._activity.size and (replaced := self._renew(link)):
                done[link.name] = replaced
        self._activity.clear()
        return done

    def _renew(self, link: Link) -> int:
        name = link.name
        size, mean = self._activity.size[name], self._activity.mean[name]
        if not size.isfinite().all():  # host sync
            return 0
        out = link.reader.weight.unflatten(1, (link.units, link.copies)).movedim(1, -1).flatten(0, -2)
        self._utility[name].lerp_(contribution(out, size).to(self._utility[name]), 1 - self.decay)
        self._mean[name].lerp_(mean.to(self._mean[name]), 1 - self.decay)
        self._age[name] += 1
        mature = self._age[name] > self.maturity
        num_mature = int(mature.sum())  # host sync
        self._due[name] += num_mature * self.replacement_rate
        number = min(int(self._due[name]), num_mature)
        if number == 0:
            return 0
        self._due[name] -= number
        age = self._age[name].clamp(min=1)
        unbiased = self._utility[name] / (1 - self.decay**age)
        chosen = unbiased.where(mature, torch.inf).argsort()[:number]
        former = self._mean[name] / (1 - self.decay**age)
        restart_units_(link, chosen, self.optimizer, self._generator, former)
        for kept in (self._utility[name], self._mean[name], self._age[name]):
            kept[chosen] = 0
        return number

    def close(self) -> None:
        """Take the hooks off."""
        self._activity.remove()

    def state_dict(self) -> dict[str, Any]:
        """Utilities, means, ages, what is due, and the random stream; the settings are not in it."""
        return {
            "utility": {n: t.clone() for n, t in self._utility.items()},
            "mean": {n: t.clone() for n, t in self._mean.items()},
            "age": {n: t.clone() for n, t in self._age.items()},
            "due": dict(self._due),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        _check.state("ContinualBackprop", state, self.state_dict())
        mine = {"utility": self._utility, "mean": self._mean, "age": self._age}
        for kind, of in mine.items():
            for name, value in of.items():
                if state[kind][name].shape != value.shape:
                    raise ValueError(
                        f"{kind} of {name!r} has {len(state[kind][name])} units, the model {len(value)}"
                    )
        for kind, of in mine.items():
            for name, value in of.items():
                value.copy_(state[kind][name])
        self._due = dict(state["due"])
        self._generator.set_state(state["generator"])
        self._activity.clear()
