"""What a forecast of a barren plateau found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steadygrad.init.depth import aligned

LEAST = math.log(2) / 4
SURE = 0.975


@dataclass(frozen=True)
class Sampled:
    """Circuits of one size: the spread of their gradients over random angles."""

    n_qubits: int
    depth: int
    variance: float
    mean_square: float  # larger than the variance where the mean is not 0

    @property
    def typical(self) -> float:
        """The usual size of a derivative."""
        return math.sqrt(self.mean_square)


@dataclass(frozen=True)
class Decay:
    """How the variance falls with the number of qubits at one depth: ``exp(-exponent * n_qubits)``."""

    depth: int
    exponent: float  # nan if there was no gradient, or one that is not finite
    low: float  # ends of the interval of 95 %, from resampled circuits
    high: float
    exponential: (
        float  # share of the resamples that an exponential fits better than a power of the number of qubits
    )

    @property
    def barren(self) -> bool:
        """Whether the variance falls exponentially: the interval above ln 2 / 4, and no power of n fits as well."""
        return self.low > LEAST and self.exponential >= SURE

    @property
    def power_law(self) -> bool:
        """Whether it falls, but as a power of the number of qubits."""
        return self.low > 0 and self.exponential <= 1 - SURE

    @property
    def undecided(self) -> bool:
        """Whether it may be a plateau, or not: larger circuits or more samples would tell."""
        return not (self.high <= LEAST or self.barren or self.power_law)


@dataclass(frozen=True)
class PlateauForecast:
    """What `barren_plateau` found; ``str()`` is a table with a sentence for each depth."""

    sampled: tuple[Sampled, ...]
    decays: tuple[Decay, ...]
    samples: int  # circuits of each size

    @property
    def barren(self) -> bool:
        """Whether the gradient vanishes exponentially with the number of qubits at any of the depths."""
        return any(decay.barren for decay in self.decays)

    def decay(self, depth: int) -> Decay:
        """How the variance falls at one of the depths. KeyError at another."""
        for decay in self.decays:
            if decay.depth == depth:
                return decay
        raise KeyError(f"no depth {depth}; there are {', '.join(str(d.depth) for d in self.decays)}")

    def __str__(self) -> str:
        sizes = sorted({one.n_qubits for one in self.sampled})
        variance = {(one.depth, one.n_qubits): one.variance for one in self.sampled}
        head = ("variance", *(f"{n} qubits" for n in sizes), "exponent", "95 %")
        table = [
            (
                f"{decay.depth} layers",
                *(f"{variance[decay.depth, n]:.2g}" for n in sizes),
                f"{decay.exponent:.2f}",
                f"{decay.low:.2f} to {decay.high:.2f}",
            )
            for decay in self.decays
        ]
        return "\n".join([*aligned([head, *table]), *(self._said(decay) for decay in self.decays)])

    def _said(self, decay: Decay) -> str:
        at = f"{decay.depth} layers:"
        if math.isnan(decay.exponent):
            return f"{at} no gradient at all, or one that is not finite, in circuits of some size"
        if decay.barren:
            largest = max(
                (one for one in self.sampled if one.depth == decay.depth), key=lambda one: one.n_qubits
            )
            return (
                f"{at} barren plateau, each qubit divides the variance by {math.exp(decay.exponent):.2g}; "
                f"at {largest.n_qubits} qubits a derivative is about {largest.typical:.1g}"
            )
        if decay.power_law:
            return f"{at} falls as a power of the number of qubits, no barren plateau"
        if decay.undecided:
            return f"{at} undecided, these sizes do not tell an exponential from a power: add larger ones, or samples"
        return f"{at} no barren plateau"
