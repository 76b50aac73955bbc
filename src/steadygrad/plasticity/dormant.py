"""ReDo: units that are hardly ever active start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad import _check
from steadygrad.plasticity._units import Activity, hidden_links, restart_units_


def dormant_scores(sizes: Tensor) -> Tensor:
    """How active each unit of a layer is beside the others.

        s_i = E|h_i| / mean_k E|h_k|

    When to use it: to see how many units a net still uses: the share with a score below 0.025 or 0.1.

    Values in use: dormant at a score of at most 0.1 or 0.025 (the paper).

    Cost: none.

    Args:
        sizes: E|h_i|, mean absolute activation of each unit of one layer, (units,).

    Returns (units,) with mean 1. A layer that is silent altogether has scores 0; inf or nan in it gives nan.

    Example:
        >>> dormant_scores(torch.tensor([0.0, 1.0, 2.0])).tolist()
        [0.0, 1.0, 2.0]

    Source: Sokar et al. (2023), the score of a neuron, https://arxiv.org/abs/2302.12902
    """
    mean = sizes.mean()
    return torch.where(mean == 0, torch.zeros_like(sizes), sizes / mean)


class DormantReset:
    """Give units that are hardly ever active a new start, every so many steps.

        s_i <= threshold:   incoming weights drawn anew, bias 0, outgoing weights 0

    so that the function changes by what little the unit gave, and the optimizer's moments of these weights are 0.

    When to use it: long trainings whose targets move (reinforcement learning, tasks one after the other) and nets that
    lost part of their units to a bad step.

    Values in use: threshold 0.1, every 1,000 steps (the paper, DQN).

    Cost: one mean a layer and forward pass; next to nothing at a reset.

    Args:
        model: hooked; changed by ``step`` only.
        optimizer: its state of the weights is cleared along.
        example_input: as for ``sg.init.follow``.
        threshold: largest score that is dormant, at least 0, below 1.
        every: steps between two resets, at least 1.
        seed: of the fresh weights, torch's own uniform ones; the global random stream is not touched.

    ``step`` is called after each step of the optimizer and returns layer -> number of units reset, empty between the
    resets. A layer with inf or nan among its activations is left alone. Layers behind which a norm or a skip stands are
    in ``left_out``.

    Raises ValueError if the model has no such layer; ``step`` raises RuntimeError in evaluation mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[0].bias.data[:3].fill_(-99.0)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> redo = DormantReset(model, optimizer, torch.zeros(1, 4), every=1, threshold=0.0)
        >>> _ = model(torch.randn(64, 4))
        >>> redo.step()
        {'0': 3}

    Source: Sokar et al. (2023), algorithm 1, https://arxiv.org/abs/2302.12902
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_input: Any,
        *,
        threshold: float = 0.1,
        every: int = 1000,
        seed: int = 0,
    ) -> None:
        self.threshold = _check.fraction("threshold", threshold, one=False)
        self.every = _check.count("every", every)
        self.model, self.optimizer = model, optimizer
        self._links, self.left_out = hidden_links(model, example_input)
        self._generator = torch.Generator().manual_seed(_check.count("seed", seed, 0))
        self._activity = Activity(self._links)
        self.num_steps = 0

    def step(self) -> dict[str, int]:
        """Count a step, and reset if it is time, by the last forward pass."""
        _check.training_mode(self.model, "step")
        self.num_steps += 1
        if self.num_steps % self.every:
            return {}
        done: dict[str, int] = {}
        for link in self._links:
            if link.name not in self._activity.size:
                continue
            scores = dormant_scores(self._activity.size[link.name])
            if not scores.isfinite().all():  # host sync
                continue
            dormant = (scores <= self.threshold).nonzero().flatten()
            if len(dormant):
                restart_units_(link, dormant, self.optimizer, self._generator)
                done[link.name] = len(dormant)
        return done

    def close(self) -> None:
        """Take the hooks off."""
        self._activity.remove()

    def state_dict(self) -> dict[str, Any]:
        """Steps so far and the random stream; the settings are not in it."""
        return {"num_steps": self.num_steps, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        _check.state("DormantReset", state, self.state_dict())
        num_steps = _check.count("num_steps", state["num_steps"], 0)
        self._generator.set_state(state["generator"])
        self.num_steps = num_steps
        self._activity.clear()
