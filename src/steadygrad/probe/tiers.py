"""How closely a run is watched: three settings of the probe, by name."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Tier:
    """How much of a run the probe reads in a step.

    In every tier the norm of each gradient, and whether it is finite, is known at each step, and so is the loss.
    The tiers differ in how soon the rest comes round:

        tier       weights and updates   optimizer state    activations      portrait of the graph
        cheap      a 16th at each step*  every 64 steps*    every 50 steps   every 50 steps
        standard   an 8th at each step   every 16 steps     every 10 steps   every 50 steps
        deep       all at each step      at each step       at each step     every 10 steps

    Activations and portraits are taken at steps 0, 1, 2, 5, 10 and 20 besides. Between the steps in which activations
    are sampled there is no hook in the model. With ``deep`` no number rests on a part of the weights, so the update
    ratio is that of the whole tensor; only the mean behind ``adam_rms`` stays a sample.

    * A net of more than 64 tensors is looked at in parts of about 4 tensors from step 32 on: one of 200 tensors in 50
    steps, and its state in 200. Its steps are short beside the calls that a closer look takes. A net of less than
    262,144 elements in at most 32 tensors is looked at every 4th step, at a quarter. Of more than 262,144 elements in
    one look the update is taken of so many of them, in each turn of others.

    What a tier takes is proportional to what it reads: the weights, their gradients and the optimizer's state once
    in ``rotation`` steps, and room for ``1 / rotation`` of the weights, which ``deep`` keeps whole. The measured
    share of a step of each tier is in ``benchmarks/results/speed.json``.

    Args:
        name: by which it is asked for.
        rotation: steps in which all weights are looked at, at least 1.
        state_turns: turns of the rotation in which all of the optimizer's state is looked at, at least 1.
        activation_every: steps from one sample of the activations to the next, at least 1.
        portrait_every: steps from one portrait to the next, at least 1.
        most_tensors: that a step looks at when two turns of the rotation are over, at least 1; None for no bound.
        small_every: steps from one look at a small net to the next, at least 1.
        most_compared: elements whose update is taken in a step, at least 1; None for no bound.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> TIERS["cheap"].rotation, TIERS["deep"].state_every
        (16, 1)
    """

    name: str
    rotation: int
    state_turns: int
    activation_every: int
    portrait_every: int
    most_tensors: int | None = None
    small_every: int = 1
    most_compared: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if isinstance(number, int) and number < 1:
                raise ValueError(f"{field.name} must be at least 1, got {number}")

    @property
    def state_every(self) -> int:
        """Steps in which every number of the state of an optimizer with few tensors is looked at once."""
        return self.rotation * self.state_turns


CHEAP = Tier(
    "cheap",
    rotation=16,
    state_turns=4,
    activation_every=50,
    portrait_every=50,
    most_tensors=4,
    small_every=4,
    most_compared=262_144,
)
STANDARD = Tier("standard", rotation=8, state_turns=2, activation_every=10, portrait_every=50)
DEEP = Tier("deep", rotation=1, state_turns=1, activation_every=1, portrait_every=10)
TIERS = {tier.name: tier for tier in (CHEAP, STANDARD, DEEP)}
