"""Layer-wise training: a circuit that grows while it trains."""

from __future__ import annotations

import torch

from steadygrad import _check
from steadygrad.quantum.layer import QuantumLayer


class LayerwiseTraining:
    """Train a few layers of a circuit, then add some more to them, until all are there; then train all together.

    Layers that are added begin at angles 0; those before them are frozen while the circuit grows.

    When to use it: deep circuits whose whole depth leaves no gradient at random angles.

    Values in use: 2 layers at first, 4 at each stage, 3 steps a stage (studies/barren_plateaus) and more.

    Cost: less than training at full depth: the layers that are not there yet are not simulated.

    Args:
        layer: a `QuantumLayer`, cut to its first layers at once. Its optimizer has all its ``weights``. One that was
            loaded from the middle of a growth is left there.
        steps: of the optimizer between two stages, at least 1.
        first: layers to begin with, at least 1, at most all; of a mirrored circuit whole blocks.
        add: layers at each stage, at least 1; of a mirrored circuit whole blocks.

    ``step`` is called after each step of the optimizer and returns how many layers are at work. Frozen angles have
    ``requires_grad`` off and no gradient, so that no optimizer moves them. How far it has come is in the layer's own
    ``state_dict``: a run that is resumed, or rolled back by the guard, goes on from there.

    Raises ValueError and TypeError on bad arguments; ``step`` raises RuntimeError in evaluation mode.

    Example:
        >>> import steadygrad as sg
        >>> layer = sg.quantum.QuantumLayer(2, depth=5)
        >>> growth = LayerwiseTraining(layer, steps=1)
        >>> [growth.step() for _ in range(3)]
        [4, 5, 5]

    Source: Skolik et al. (2021), section 3, https://arxiv.org/abs/2006.14904
    """

    def __init__(self, layer: QuantumLayer, steps: int, *, first: int = 2, add: int = 2) -> None:
        if not isinstance(layer, QuantumLayer):
            raise TypeError(f"layer must be a QuantumLayer, got {type(layer).__name__}")
        self.steps = _check.count("steps", steps)
        self.first = _check.count("first", first)
        self.add = _check.count("add", add)
        if self.first > layer.depth:
            raise ValueError(f"first must be at most the depth {layer.depth}, got {first}")
        block = 2 * layer.mirrored if layer.mirrored else 1
        if self.first % block or self.add % block:
            raise ValueError(
                f"first and add must be multiples of {block}, the blocks of the mirrored circuit; got {first} and {add}"
            )
        self.layer = layer
        if self.num_steps < 0:
            self._go_to(0)

    @property
    def num_steps(self) -> int:
        """Steps so far."""
        return int(self.layer.growth[0])

    def step(self) -> int:
        """Count a step, and let the circuit grow if it is time."""
        _check.training_mode(self.layer, "step")
        before = self.layer.active_depth
        self._go_to(self.num_steps + 1)
        with torch.no_grad():
            for k in range(before, self.layer.active_depth):
                self.layer.weights[k].zero_()
        return self.layer.active_depth

    def _go_to(self, num_steps: int) -> None:
        depth = self._depth(num_steps)
        frozen = self._depth(num_steps - self.steps) if num_steps >= self.steps else 0
        frozen = 0 if frozen == self.layer.depth else frozen  # all have had their steps
        self.layer.growth.copy_(torch.tensor([num_steps, frozen, depth]))
        self.layer.settle()

    def _depth(self, num_steps: int) -> int:
        return min(self.first + num_steps // self.steps * self.add, self.layer.depth)
